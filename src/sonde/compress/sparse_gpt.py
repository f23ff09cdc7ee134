"""Remove weights column by column; the remaining weights compensate the error.

For layers whose inputs are at hand. Without data, or if kept weights must not change, use
``PruneWeights``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.compress._each_layer import each_layer
from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted
from sonde.compress._masks import check_pattern, check_width, kept_of, lowest, lowest_of_runs
from sonde.compress.gptq import BLOCK, damped, inverse_factor, loss_of
from sonde.compress.grams import LayerGrams, lifted, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.stats import Shrinkage, check_shrinkage, solve_normal_equations
from sonde.weights import Examples, Pruned, Rewrite, RewritePlan
from sonde.weights.change import rounded_to_half


@renamed(remove="share")
@final
@dataclass(frozen=True)
class SparseGPT(Rewrite):
    """Set weights to 0 with little change of the layer's outputs, and adjust the other weights.

    Walks over columns as ``GPTQ`` does. In each block of 128 columns the weights with the smallest
    ``w^2 / U_jj^2`` are removed, with ``U`` the Cholesky factor of the inverse second moment of the
    inputs; the error of a removed weight is moved to the columns behind it.

    Range        ``remove`` of the weights of each block, rounded half to even.
    Cost         as ``GPTQ``; ``refit``: one system of equations for each row, O(out dim^3).
    Assumes      inputs of the kind that the model will meet; all layers are fitted at the inputs of
                 the unpruned model, unless ``sequential``.
    Differs      from the paper: ``refit`` is ours; the paper fits block after block.

    Parameters
    ----------
    remove : float, default=0.5
        Fraction of the weights that becomes zero, in [0, 1); 0 changes nothing.
    pattern : str, optional
        ``2:4`` keeps two of every four neighbours in a row, in place of a share.
    damp : float, default=0.01
        Added to the diagonal of the second moment, as a share of its mean.
    refit : bool, default=False
        Solve for all kept weights of a row at once. The error on the calibration inputs is then the
        smallest for the mask, but for ``shrinkage``.
    shrinkage : float or "oas", default="oas"
        Fraction in [0, 1] of its mean that ``refit`` adds to the diagonal of the second moment, so
        that few rows do not decide alone; "oas" estimates it from their number, 0 adds nothing.
    half : bool, default=True
        Round the kept weights to float16 (bfloat16 if one is too large), so that files are smaller.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.
    sequential : bool, default=False
        Fit block after block, each at the states that the changed blocks before it give.

    References
    ----------
    frantar2023sparsegpt
    """

    remove: float = 0.5
    pattern: str | None = None
    damp: float = 0.01
    refit: bool = False
    shrinkage: Shrinkage = "oas"
    half: bool = True
    layers: Sequence[str] | None = None
    sequential: bool = False
    paper: ClassVar[str] = "frantar2023sparsegpt"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"pattern": "2:4", "refit": True, "layers": ("11",)},
        {"remove": 0.3, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")
        check_pattern("SparseGPT", self.pattern)
        check_ranges(self, damp="> 0")
        check_shrinkage("SparseGPT", self.shrinkage)

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them."""
        return {"calibration": Examples(summed=None if self.sequential else LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the weights with zeros in them.

        Raises
        ------
        StateError
            If the inputs were read at other weights.
        """
        word = method_of("SparseGPT", asdict(self))
        if self.remove == 0 and self.pattern is None:
            return RewritePlan.of(model, {}, word)
        how = (self.layers, self._one)
        changes, figures = each_layer(
            "SparseGPT", model, calibration, *how, sequential=self.sequential
        )
        return RewritePlan.of(model, changes, word, **figures)

    def _one(
        self, layer: Weighted, model: Model, grams: LayerGrams
    ) -> tuple[Pruned, dict[str, float]]:
        matrix, loss = layer.matrix(), 0.0
        if self.pattern is not None:
            check_width("SparseGPT", self.pattern, matrix.shape[1], layer.weight)
        new = matrix.clone()
        for rows, h in parts_of(layer, model, grams):
            pruned, gone = sparse(matrix[rows], h, self.damp, self.remove, self.pattern)
            if self.refit:
                certain = lifted(h, layer, model, grams, self.shrinkage)
                pruned = refitted(matrix[rows], pruned, gone, certain)
            new[rows] = pruned
            loss += float(loss_of(matrix[rows] - pruned, h).sum())
        if self.half:
            new = rounded_to_half(new)
        return Pruned(layer.tensor(new)), {"loss": loss}


def sparse(
    w: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    damp: float,
    share: float = 0.0,
    pattern: str | None = None,
    gone: Bool[Tensor, "out in"] | None = None,
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """Return weights with zeros and a mask of the zeros, found column by column.

    Parameters
    ----------
    w : Float[Tensor, "out in"]
    h : Float[Tensor, "in in"]
        Second moment of the inputs; inputs that are always 0 get weights of 0.
    damp : float
    share : float, default=0
    pattern : str, optional
    gone : Bool[Tensor, "out in"], optional
        The weights to remove; chosen by default.
    """
    w, upper = w.clone(), inverse_factor(damped(h, damp))
    w[:, h.diagonal() <= 0] = 0.0
    run = 1 if pattern is None else kept_of("SparseGPT", pattern)[1]
    width = max(BLOCK - BLOCK % run, run)
    chosen = torch.zeros_like(w, dtype=torch.bool) if gone is None else gone
    for start in range(0, len(h), width):
        stop = min(start + width, len(h))
        scores = w[:, start:stop].square() / upper.diagonal()[start:stop].square()
        if gone is None and pattern is None:
            lowest_here = lowest(scores.reshape(1, -1), round(share * scores.numel()))
            chosen[:, start:stop] = lowest_here.reshape(scores.shape)
        errors = torch.empty_like(scores)
        for i in range(start, stop):
            if gone is None and pattern is not None and (i - start) % run == 0:
                now = w[:, i : i + run].square() / upper.diagonal()[i : i + run].square()
                chosen[:, i : i + run] = lowest_of_runs(now, pattern)
            error = torch.where(chosen[:, i], w[:, i] / upper[i, i], 0.0)
            w[:, i:stop] -= error[:, None] * upper[i, i:stop]
            errors[:, i - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return w.masked_fill(chosen, 0.0), chosen


def refitted(
    w: Float[Tensor, "out in"],
    found: Float[Tensor, "out in"],
    gone: Bool[Tensor, "out in"],
    h: Float[Tensor, "in in"],
) -> Float[Tensor, "out in"]:
    """Return the kept weights of each row, refitted to change the outputs least.

    Of all fits with the same outputs it is the nearest to the old weights: along directions that no
    calibration row has, weights stay as they are. The fit of least norm would lose them.
    """
    new = torch.zeros_like(w)
    for i, kept in enumerate(~gone):
        lost = h[kept][:, ~kept] @ w[i, ~kept]
        new[i, kept] = w[i, kept] + solve_normal_equations(h[kept][:, kept], lost[:, None])[:, 0]
    better = loss_of(w - new, h) < loss_of(w - found, h)
    return torch.where(better[:, None], new, found)
