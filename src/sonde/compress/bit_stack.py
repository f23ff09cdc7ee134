"""Weights as sums of blocks, where every added block reduces the error.

The number of blocks can be lowered in a loaded model at any time. At a fixed size of 3 bits or more
``GPTQ`` changes answers less.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress.gptq import loss_of
from sonde.compress.grams import LayerGrams, grams_for, parts_of
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Change, Examples, Rewrite, RewritePlan, Stacked, pack
from sonde.weights.packing import packed_length

MOST_FACTOR_BITS = 0.25
"""Bits of a weight that the thin matrices of a block may take, if no rank is given."""
HALF = torch.finfo(torch.half).max
SMALLEST = 1e-3
"""Least size of an input, in parts of the mean."""


@final
@dataclass(frozen=True)
class BitStack(Rewrite):
    """Decompose each weight into blocks of signs and thin matrices, and keep as many as fit.

    Columns are scaled by the root mean square ``t`` of the input that they multiply,
    ``R_0 = W diag(t)``. Each block holds the signs of the residual and the best product of a rank
    for the residual's sizes, ``|R| ~ L M``; the next residual is ``R - sign(R) * (L M)``, with
    ``L`` and ``M`` as stored, in float16, so that later blocks correct the rounding of both. Every
    layer gets a first block; then, level by level, the layers whose output error falls most get the
    next block. ``save_stack`` writes the blocks as a file that opens cut anywhere.

    Range        linear layers become ``StackLinear``; the residual's norm never rises.
    Cost         one pass over the data; a singular value decomposition for each block, O(in^2 out).
    Assumes      inputs of the kind that the model will meet.
    Differs      from the paper: inputs are measured by the root mean square over all rows; blocks
                 are sorted by the layer's output error, not by running the model for each; the
                 rank follows from the layer's size if none is given.

    Parameters
    ----------
    bits : float or None, default=4
        Mean bits of a weight, with signs, matrices and scales counted; None changes nothing.
    blocks : int, default=16
        Most blocks of a layer.
    rank : int, optional
        Rank of the thin matrices; by default the largest that takes at most 0.25 bits of a weight.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    wang2025bitstack
    """

    bits: float | None = 4
    blocks: int = 16
    rank: int | None = None
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "wang2025bitstack"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"bits": 8},
        {"bits": 9.5, "blocks": 3, "rank": 2, "layers": ("10",)},
    )

    def __post_init__(self) -> None:
        check_ranges(self, bits="> 1", blocks=">= 1", rank=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them."""
        return {"calibration": Examples(summed=LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the weights as stacks of blocks.

        Raises
        ------
        InputError
            If the first blocks of all layers take more than the bits.
        """
        word = method_of("BitStack", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, {}, word)
        layers = weighted_layers("BitStack", model, self.layers)
        grams = grams_for("BitStack", model, calibration, self.layers)
        sizes = [self._sizes(layer) for layer in layers]
        numbers = sum(layer.module.weight.numel() for layer in layers)
        budget = self.bits * numbers - sum(first for first, _ in sizes)
        if budget < 0:
            least = sum(first for first, _ in sizes) / numbers
            raise InputError(
                f"BitStack.plan: expected at least {least:.2f} bits (a single block for each "
                f"layer), got {self.bits:g}. Lower the rank, or allow more bits."
            )
        stacks = [_Stack.of(layer, model, grams, self._rank(layer)) for layer in layers]
        for _ in range(1, self.blocks):
            falls = torch.tensor([stack.add() for stack in stacks])
            for i in falls.argsort(descending=True, stable=True).tolist():
                if sizes[i][1] <= budget and stacks[i].is_whole:
                    budget -= sizes[i][1]
                    stacks[i].kept += 1
        changes: dict[str, Change] = {stack.layer.weight: stack.change() for stack in stacks}
        figures = {
            "loss": sum(stack.losses[stack.kept - 1] for stack in stacks),
            "bits": self.bits - budget / numbers,
        }
        return RewritePlan.of(model, changes, word, **figures)

    def _rank(self, layer: Weighted) -> int:
        n_out, n_in = layer.matrix().shape
        most = int(MOST_FACTOR_BITS * n_out * n_in / (16 * (n_out + n_in)))
        return min(self.rank or max(1, most), n_out, n_in)

    def _sizes(self, layer: Weighted) -> tuple[int, int]:
        """Return the bits of a layer's first block with its scales, and of each further block."""
        n_out, n_in = layer.matrix().shape
        block = 8 * n_out * packed_length(n_in, 1) + 16 * self._rank(layer) * (n_out + n_in)
        return block + 16 * n_in, block


@dataclass(eq=False)
class _Stack:
    """The blocks of a layer, and the number of blocks that are kept.

    Parameters
    ----------
    layer : Weighted
    parts : list of (rows, second moment of inputs)
    scale : Float[Tensor, "in"]
    residual : Float[Tensor, "out in"]
        Of the scaled weight.
    rank : int
    """

    layer: Weighted
    parts: list[tuple[Tensor, Tensor]]
    scale: Float[Tensor, "in"]
    residual: Float[Tensor, "out in"]
    rank: int

    def __post_init__(self) -> None:
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        self.losses: list[float] = []
        self.kept = 1
        self.whole = self._loss()
        self.add()

    @classmethod
    def of(cls, layer: Weighted, model: Model, grams: LayerGrams, rank: int) -> "_Stack":
        parts, w = list(parts_of(layer, model, grams)), layer.matrix()
        size = torch.stack([h.diagonal() for _, h in parts]).mean(0).clamp(min=0).sqrt()
        mean = float(size.mean()) or 1.0
        scale = (size / mean).clamp(min=SMALLEST).bfloat16()
        return cls(layer, parts, scale, w * scale.double(), rank)

    @property
    def is_whole(self) -> bool:
        """True if all computed blocks before the last one are kept."""
        return self.kept == len(self.blocks) - 1

    def add(self) -> float:
        """Compute a further block; return the fall of the error over the output's energy."""
        sign = torch.where(self.residual >= 0, 1.0, -1.0).to(self.residual)
        u, s, v = torch.linalg.svd(self.residual.abs(), full_matrices=False)
        root = s[: self.rank].sqrt()
        if float(root.max()) > HALF:
            raise InputError(
                f"BitStack.plan: expected weights whose factors half precision holds, got a size "
                f"of {float(root.max()):.3g} at {self.layer.name}. Leave the layer out (layers=), "
                "or scale its weight."
            )
        left, right = (u[:, : self.rank] * root).half(), (root[:, None] * v[: self.rank]).half()
        before = self._loss()
        self.residual = self.residual - sign * (left.double() @ right.double())
        self.blocks.append((sign, left, right))
        self.losses.append(self._loss())
        return (before - self.losses[-1]) / max(self.whole, 1e-300)

    def _loss(self) -> float:
        error = self.residual / self.scale.double()
        return sum(float(loss_of(error[rows], h).sum()) for rows, h in self.parts)

    def change(self) -> Stacked:
        """Return the change to the kept blocks."""
        signs, left, right = zip(*self.blocks[: self.kept], strict=True)
        packed = pack((torch.stack(signs) > 0).to(torch.uint8), 1)
        parts = packed, torch.stack(left), torch.stack(right), self.scale
        return Stacked(*parts, turned=self.layer.turned)
