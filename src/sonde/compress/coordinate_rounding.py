"""Round weights by coordinate descent: each to the best value given all others.

For layers whose inputs are at hand, where ``GPTQ`` leaves something to gain; this method costs some
sweeps more.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

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
from sonde.compress.gptq import loss_of, solved
from sonde.compress.grams import LayerGrams, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Examples, Grid, Quantised, Rewrite, RewritePlan


@final
@dataclass(frozen=True)
class CoordinateRounding(Rewrite):
    """Round weights to a grid so that no change of a single code lowers the error.

    Starts from the better of ``GPTQ`` and ``RTN`` for each row, or from ``RTN``, and minimises
    ``e H e^T`` of each row exactly in one weight after the other; ``e`` is the change of the row,
    ``H`` the second moment of the layer's inputs. A step is taken only if it lowers the error.

    Range        as ``RTN``; the loss on the calibration inputs is never above that of the start.
    Cost         as ``GPTQ``, and O(out dim^2) for each sweep.
    Assumes      inputs of the kind that the model will meet.
    Differs      from the paper: weights that leave the grid's range are not kept apart.

    Parameters
    ----------
    bits : int or None, default=4
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    symmetry : {"asymmetric", "symmetric"}, default="asymmetric"
        Whether a group's grid has an offset of its own (``asymmetric``) or is even around 0
        (``symmetric``).
    start : {"gptq", "rtn"}, default="gptq"
        Codes to start from: the better of ``GPTQ`` and ``RTN`` for each row, or ``RTN``.
    sweeps : int, default=20
        Most passes over all columns.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    behdin2023quantease
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    start: Literal["gptq", "rtn"] = "gptq"
    sweeps: int = 20
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "behdin2023quantease"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 2, "group": 5, "symmetry": "symmetric", "start": "rtn", "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_grid("CoordinateRounding", self.bits, self.group)
        check_ranges(self, sweeps=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them."""
        return {"calibration": Examples(summed=LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the rounded weights.

        Raises
        ------
        StateError
            If the inputs were read at other weights.
        """
        grid = self.bits, self.group, self.symmetry
        how = self.layers, grid, self._one, method_of("CoordinateRounding", asdict(self))
        return round_each_layer("CoordinateRounding", model, calibration, *how)

    def _one(
        self, layer: Weighted, model: Model, grams: LayerGrams
    ) -> tuple[Quantised, dict[str, float]]:
        assert self.bits is not None
        matrix, total = layer.matrix(), torch.zeros(2, dtype=torch.float64)
        grid = Grid.over(self.bits, self.group, matrix.shape[1])
        scale, offset = grid_of(matrix, grid, self.symmetry)
        each = [each_entry(x, grid.group, matrix.shape[1]) for x in (scale, offset)]
        codes, half = torch.empty_like(matrix), 2 ** (grid.bits - 1)
        for rows, h in parts_of(layer, model, grams):
            w, s, o = (x[rows] for x in (matrix, *each))
            first = codes_of(w, s, o, grid.bits)
            if self.start == "gptq":
                other = solved(w, s, o, h, grid.bits, 0.01, ordered=True)
                lost = [loss_of(w - ((c - half) * s + o), h) for c in (other, first)]
                first = torch.where((lost[0] < lost[1])[:, None], other, first)
            codes[rows] = descended(w, s, o, h, grid.bits, first, self.sweeps)
            for i, tried in enumerate((codes[rows], first)):
                total[i] += loss_of(w - ((tried - half) * s + o), h).sum().cpu()
        figures = {"loss": float(total[0]), "loss_start": float(total[1])}
        return quantised(codes, scale, offset, grid, layer), figures


def descended(
    w: Float[Tensor, "out in"],
    scale: Float[Tensor, "out in"],
    offset: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    bits: int,
    codes: Float[Tensor, "out in"],
    sweeps: int,
) -> Float[Tensor, "out in"]:
    """Return integer codes that no change of a single code improves, if the sweeps suffice."""
    codes = codes.clone()
    error = w - ((codes - 2 ** (bits - 1)) * scale + offset)
    pull = error @ h
    for _ in range(sweeps):
        before = codes.clone()
        for j in h.diagonal().nonzero()[:, 0].tolist():
            wanted = w[:, j] + (pull[:, j] - error[:, j] * h[j, j]) / h[j, j]
            code = codes_of(wanted, scale[:, j], offset[:, j], bits)
            step = (codes[:, j] - code) * scale[:, j]  # what it adds to the error
            gain = 2 * step * pull[:, j] + step.square() * h[j, j]
            step = torch.where(gain < 0, step, 0.0)
            codes[:, j] = torch.where(gain < 0, code, codes[:, j])
            error[:, j] += step
            pull += step[:, None] * h[j]
        if torch.equal(codes, before):
            break
    return codes
