"""Round weights column by column, each compensating the errors of the earlier columns.

For layers whose inputs are at hand. The loss is the error of the layer's output on these inputs.
Without data, and for a first look, use ``RTN``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._each_layer import round_each_layer
from sonde.compress._grid import (
    Symmetry,
    check_grid,
    codes_of,
    each_entry,
    grid_of,
    method_of,
    quantised,
)
from sonde.compress._layers import Weighted
from sonde.compress.grams import LayerGrams, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Examples, Grid, Quantised, Rewrite, RewritePlan


@final
@dataclass(frozen=True)
class GPTQ(Rewrite):
    """Round weights to a grid so that the layer's outputs change least.

    Minimises ``tr((W - V) H (W - V)^T)`` over roundings ``V``, with ``H`` the second moment of the
    layer's inputs, greedily: columns are rounded one by one, and the error of a column is moved to
    the columns that are not yet rounded, by the Cholesky factor of ``H^-1``. A row for which plain
    rounding has the smaller loss keeps plain rounding.

    Range        as ``RTN``; the loss on the calibration inputs is never above that of ``RTN``.
    Cost         one pass over the data; O(dim^3) for each input and O(out dim^2) for each layer.
                 ``sequential`` keeps the states of one block in memory and runs each block twice.
    Assumes      inputs of the kind that the model will meet. All layers are fitted at the inputs of
                 the unrounded model, or, if ``sequential``, those of a block at the states that the
                 rounded blocks before it give.
    Differs      from the paper: groups' grids are fixed before the columns are ordered, so that no
                 index is kept; rows may fall back to plain rounding.

    Parameters
    ----------
    bits : int or None, default=4
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    symmetry : {"asymmetric", "symmetric"}, default="asymmetric"
        Whether a group's grid has an offset of its own (``asymmetric``) or is even around 0
        (``symmetric``).
    damp : float, default=0.01
        Added to the diagonal of ``H``, as a share of its mean.
    ordered : bool, default=True
        Round columns of large inputs first.
    guard : bool, default=True
        Let rows fall back to plain rounding.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.
    sequential : bool, default=False
        Fit block after block, each at the states that the changed blocks before it give.

    References
    ----------
    frantar2023gptq
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    damp: float = 0.01
    ordered: bool = True
    guard: bool = True
    layers: Sequence[str] | None = None
    sequential: bool = False
    paper: ClassVar[str] = "frantar2023gptq"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 2, "group": 5, "symmetry": "symmetric", "ordered": False, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_grid("GPTQ", self.bits, self.group)
        check_ranges(self, damp="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them."""
        return {"calibration": Examples(summed=None if self.sequential else LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the rounded weights.

        Raises
        ------
        StateError
            If the inputs were read at other weights.
        """
        grid: tuple[int | None, int, Symmetry] = self.bits, self.group, self.symmetry
        how = self.layers, grid, self._one, method_of("GPTQ", asdict(self))
        return round_each_layer("GPTQ", model, calibration, *how, sequential=self.sequential)

    def _one(
        self, layer: Weighted, model: Model, grams: LayerGrams
    ) -> tuple[Quantised, dict[str, float]]:
        """Return the change of a layer, its loss, and the loss of plain rounding."""
        assert self.bits is not None
        matrix = layer.matrix()
        grid = Grid.over(self.bits, self.group, matrix.shape[1])
        scale, offset = grid_of(matrix, grid, self.symmetry)
        each = [each_entry(x, grid.group, matrix.shape[1]) for x in (scale, offset)]
        codes, total = list[Tensor](), torch.zeros(2, dtype=torch.float64)
        for rows, h in parts_of(layer, model, grams):
            parts = (matrix[rows], each[0][rows], each[1][rows])
            chosen, lost = self._chosen(*parts, h)
            codes.append(chosen)
            total += lost.cpu()
        figures = {"loss": float(total[0]), "loss_rtn": float(total[1])}
        return quantised(torch.cat(codes), scale, offset, grid, layer), figures

    def _chosen(
        self, w: Tensor, scale: Tensor, offset: Tensor, h: Tensor
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, "two"]]:
        assert self.bits is not None
        half = 2 ** (self.bits - 1)
        plain = codes_of(w, scale, offset, self.bits)
        rounded_codes = solved(w, scale, offset, h, self.bits, self.damp, self.ordered)
        losses = [loss_of(w - ((c - half) * scale + offset), h) for c in (rounded_codes, plain)]
        if self.guard:
            worse = losses[0] > losses[1]
            rounded_codes = torch.where(worse[:, None], plain, rounded_codes)
            losses[0] = torch.minimum(*losses)
        return rounded_codes, torch.stack([loss.sum() for loss in losses])


def loss_of(error: Float[Tensor, "out in"], h: Float[Tensor, "in in"]) -> Float[Tensor, "out"]:
    """Return ``e H e^T`` of each row."""
    return ((error @ h) * error).sum(1)


def solved(
    w: Float[Tensor, "out in"],
    scale: Float[Tensor, "out in"],
    offset: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    bits: int,
    damp: float,
    ordered: bool = False,
) -> Float[Tensor, "out in"]:
    """Return integer codes, column by column; errors move to columns not yet rounded.

    Parameters
    ----------
    w : Float[Tensor, "out in"]
    scale, offset : Float[Tensor, "out in"]
        Of each entry.
    h : Float[Tensor, "in in"]
        Second moment of the inputs; inputs that are always 0 get weights of 0.
    bits : int
    damp : float
    ordered : bool, default=False
        Take columns of large inputs first.
    """
    w, half = w.clone(), 2 ** (bits - 1)
    w[:, h.diagonal() <= 0] = 0.0
    h = damped(h, damp)
    order = h.diagonal().argsort(descending=True, stable=True) if ordered else torch.arange(len(h))
    h, w, scale, offset = h[order][:, order], w[:, order], scale[:, order], offset[:, order]
    upper = inverse_factor(h)
    codes = torch.empty_like(w)
    for start in range(0, len(h), BLOCK):
        stop = min(start + BLOCK, len(h))
        errors = torch.empty_like(w[:, start:stop])
        for i in range(start, stop):
            codes[:, i] = codes_of(w[:, i], scale[:, i], offset[:, i], bits)
            value = (codes[:, i] - half) * scale[:, i] + offset[:, i]
            error = (w[:, i] - value) / upper[i, i]
            w[:, i:stop] -= error[:, None] * upper[i, i:stop]
            errors[:, i - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes[:, order.argsort()]


def damped(h: Float[Tensor, "in in"], damp: float) -> Float[Tensor, "in in"]:
    """Return a second moment with a fraction of its mean diagonal added to the diagonal.

    Inputs that are always 0 take the mean of the others: any other number would tie the damping to
    the inputs' unit.
    """
    h = h.clone()
    dead = h.diagonal() <= 0
    mean = 1.0 if bool(dead.all()) else float(h.diagonal()[~dead].mean())
    h.diagonal()[dead] = mean
    h.diagonal().add_(damp * mean)
    return h


def inverse_factor(h: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """Return the upper Cholesky factor of the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


BLOCK = 128
"""Columns whose errors are added to the later columns together."""
