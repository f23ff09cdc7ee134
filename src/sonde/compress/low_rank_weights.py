"""Replace weights by products of two thin matrices: smaller and faster without a kernel.

The loss is the error of the layer's output. At equal bytes rounding to few bits usually changes
answers less: compare with ``GPTQ``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._each_layer import each_layer
from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress.allocate import allocate
from sonde.compress.gptq import damped, loss_of
from sonde.compress.grams import LayerGrams, grams_for, parts_of
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.weights import Examples, Rewrite, RewritePlan, Thin
from sonde.weights._kinds import in_and_out
from sonde.weights.change import rounded_to_half

MOST_RANKS = 128
"""Ranks that are compared for each layer, evenly spaced, if one budget is shared."""


@renamed(remove="share")
@final
@dataclass(frozen=True)
class LowRankWeights(Rewrite):
    """Replace each weight by the nearest product of two thin matrices.

    With ``H`` the second moment of the layer's inputs, ``output`` projects the weight on the main
    directions of the outputs, the first eigenvectors of ``W H W^T``; ``gram`` (SVD-LLM) cuts the
    singular values of ``W L``, ``L L^T = H``. Both have the smallest output error of their rank.
    ``scale`` (ASVD) cuts those of ``W`` with columns scaled by a power of the size of the inputs,
    ``none`` those of ``W`` itself.

    Range        linear layers become ``ThinLinear``. Layers too small for ``rank`` stay; if they
                 are named, InputError.
    Cost         one pass over the data (``none``: no data); O(dim^3) for each layer.
    Assumes      inputs of the kind that the model will meet; all layers are fitted at the inputs of
                 the whole model, unless ``sequential``.
    Differs      from the papers: ``scale`` takes the root mean square of an input, not its mean
                 size. ``shared_budget`` finds ranks by dynamic programming.

    Parameters
    ----------
    remove : float, default=0.5
        Fraction of the numbers of each weight that is saved, in [0, 1); 0 changes nothing.
    rank : int, optional
        Rank of every layer, in place of a fraction.
    whiten : {"output", "gram", "scale", "none"}, default="output"
        What is cut to the rank: the outputs (``output``), the weight times a factor of the inputs'
        second moment (``gram``), the weight with scaled columns (``scale``), or the weight itself
        (``none``).
    power : float, default=0.5
        Power of the size of an input in ``scale``.
    damp : float, default=1e-6
        Added to the diagonal of ``H``, as a share of its mean, for ``gram``.
    shared_budget : bool, default=False
        Remove the fraction over all layers together, not of each layer. Ranks are those with the
        smallest sum of the layers' squared errors, in the measure of ``whiten``; a layer may stay
        whole.
    half : bool, default=True
        Round both matrices to float16 (bfloat16 if a number is too large), so that files are
        smaller.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.
    sequential : bool, default=False
        Fit block after block, each at the states that the changed blocks before it give.

    References
    ----------
    wang2025svdllm
    """

    remove: float = 0.5
    rank: int | None = None
    whiten: Literal["output", "gram", "scale", "none"] = "output"
    power: float = 0.5
    damp: float = 1e-6
    shared_budget: bool = False
    half: bool = True
    layers: Sequence[str] | None = None
    sequential: bool = False
    paper: ClassVar[str] = "wang2025svdllm"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"rank": 2, "whiten": "gram"},
        {"remove": 0.4, "whiten": "scale"},
        {"whiten": "none"},
        {"whiten": "gram", "shared_budget": True},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", rank=">= 1", damp="> 0")
        if self.shared_budget and self.rank is not None:
            raise InputError(
                f"LowRankWeights: expected remove for shared_budget=True, got rank={self.rank}, "
                "which is the rank of every layer. Leave one of them out."
            )
        if self.sequential and self.whiten == "none":
            raise InputError(
                "LowRankWeights: expected whiten='output', 'gram' or 'scale' for sequential=True, "
                "got 'none', which reads no inputs."
            )

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them; ``none`` needs no data."""
        summed = None if self.sequential else LayerGrams
        return {"calibration": Examples(optional=self.whiten == "none", summed=summed)}

    def check(self, model: Model) -> None:
        """Raise before calibration for a rank that saves nothing, or for a convolution."""
        if self.remove > 0 or self.rank is not None:
            chosen = weighted_layers("LowRankWeights", model, self.layers)
            ranks = [self._rank(layer, len(chosen) == 1) for layer in chosen]
            if self.rank is not None and not any(ranks):
                each = (in_and_out(layer.module) for layer in chosen)
                most = max((n * m - 1) // (n + m) for n, m in each)
                raise InputError(
                    f"LowRankWeights.plan: expected a rank of at most {most}, got {self.rank}: two "
                    "matrices would be no smaller at any layer. Lower the rank."
                )

    def planned(self, model: Model, calibration: Inputs | LayerGrams | None = None) -> RewritePlan:
        """Return the thin matrices.

        Raises
        ------
        InputError
            If a rank saves nothing, or a layer is a convolution.
        """
        word = method_of("LowRankWeights", asdict(self))
        if self.remove == 0 and self.rank is None:
            return RewritePlan.of(model, {}, word)
        chosen = weighted_layers("LowRankWeights", model, self.layers)
        ranks = {layer.name: self._rank(layer, len(chosen) == 1) for layer in chosen}
        if self.shared_budget:
            ranks = self._shared_ranks(chosen, model, calibration)

        def one(
            layer: Weighted, model: Model, grams: LayerGrams | None
        ) -> tuple[Thin | None, dict[str, float]]:
            rank, w = ranks[layer.name], layer.matrix()
            if rank == 0:
                return None, {}
            h = None if grams is None else next(parts_of(layer, model, grams))[1]
            left, right = self._factors(w, h, rank)
            if self.half:
                left, right = rounded_to_half(left), rounded_to_half(right)
            dtype = layer.module.weight.dtype
            change = Thin(left.to(dtype), right.to(dtype), turned=layer.turned)
            lost = None if h is None else float(loss_of(w - left @ right, h).sum())
            return change, {} if lost is None else {"loss": lost}

        changes, figures = each_layer(
            "LowRankWeights", model, calibration, self.layers, one, sequential=self.sequential
        )
        return RewritePlan.of(model, changes, word, **figures)

    def _shared_ranks(
        self, layers: Sequence[Weighted], model: Model, calibration: Inputs | LayerGrams | None
    ) -> dict[str, int]:
        """Return the ranks of layers with the smallest summed error; 0 for one that stays whole."""
        grams = None
        if calibration is not None:
            grams = grams_for("LowRankWeights", model, calibration, self.layers)
        every, costs, sizes = list[list[int]](), list[Tensor](), list[Tensor]()
        for layer in layers:
            h = None if grams is None else next(parts_of(layer, model, grams))[1]
            power = self._powers(layer.matrix(), h).clamp(min=0).cpu()
            n_in, n_out = in_and_out(layer.module)
            most = (n_in * n_out - 1) // (n_in + n_out)
            ranks = sorted({*torch.linspace(1, most, min(most, MOST_RANKS)).int().tolist()})
            lost = power.flip(0).cumsum(0).flip(0)
            short = MOST_RANKS - len(ranks)  # options of all layers fill one table
            costs.append(torch.cat([lost[ranks], lost.new_zeros(1 + short)]))
            whole = torch.full((1 + short,), n_in * n_out)
            sizes.append(torch.cat([torch.tensor(ranks) * (n_in + n_out), whole]))
            every.append([*ranks, *[0] * (1 + short)])
        n_whole, least = (sum(int(size[i]) for size in sizes) for i in (-1, 0))
        budget = int((1 - self.remove) * n_whole)
        if least > budget:
            raise InputError(
                f"LowRankWeights.plan: expected to remove at most {1 - least / n_whole:.3f} of the "
                f"weights, where every layer has rank 1, got {self.remove}. Lower remove."
            )
        taken = allocate(torch.stack(costs), torch.stack(sizes), budget)
        return {one.name: ranks[i] for one, ranks, i in zip(layers, every, taken, strict=True)}

    def _powers(
        self, w: Float[Tensor, "out in"], h: Float[Tensor, "in in"] | None
    ) -> Float[Tensor, "rank"]:
        """Return the squared singular values of the matrix that is cut, largest first."""
        if h is None or self.whiten == "none":
            return torch.linalg.svdvals(w).square()
        if self.whiten == "scale":
            return torch.linalg.svdvals(w * self._column_sizes(h)).square()
        rank = min(w.shape)
        return torch.linalg.eigvalsh(w @ h @ w.T).flip(0)[:rank]

    def _column_sizes(self, h: Float[Tensor, "in in"]) -> Float[Tensor, "in"]:
        size = h.diagonal().clamp(min=0).sqrt() ** self.power
        return torch.where(size > 0, size, 1.0)

    def _rank(self, layer: Weighted, few: bool) -> int:
        """Return the rank of a layer, or 0 if thin matrices would not be smaller."""
        if not layer.is_linear:
            raise InputError(
                f"LowRankWeights.plan: expected linear layers, got a convolution, {layer.name}. "
                "Leave it out."
            )
        n_in, n_out = in_and_out(layer.module)
        if self.rank is None:
            return int((1 - self.remove) * n_in * n_out / (n_in + n_out))
        if self.rank * (n_in + n_out) >= n_in * n_out:
            if self.layers is None and not few:
                return 0
            most = (n_in * n_out - 1) // (n_in + n_out)
            raise InputError(
                f"LowRankWeights.plan: expected a rank of at most {most} for {layer.weight} of "
                f"{n_out} x {n_in}, got {self.rank}: two matrices would be no smaller. Lower the "
                "rank, or leave the layer out."
            )
        return self.rank

    def _factors(
        self, w: Float[Tensor, "out in"], h: Float[Tensor, "in in"] | None, rank: int
    ) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
        if h is None or self.whiten == "none":
            return thin_factors(w, rank)
        if self.whiten == "output":
            left = torch.linalg.eigh(w @ h @ w.T).eigenvectors[:, -rank:]
            return left, left.T @ w
        if self.whiten == "scale":
            size = self._column_sizes(h)
            left, right = thin_factors(w * size, rank)
            return left, right / size
        root = torch.linalg.cholesky(damped(h, self.damp))
        left, right = thin_factors(w @ root, rank)
        return left, torch.linalg.solve_triangular(root, right, upper=False, left=False)


def thin_factors(
    w: Float[Tensor, "out in"], rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """Return the two factors, of equal norm, of the nearest matrix of a rank."""
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
