"""Fit integer codes and scales of weights in turn, as two separate problems.

For two or three bits, where the grid matters as much as the rounding; at four bits ``GPTQ`` is as
good and faster.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sonde.compress._each_layer import round_each_layer
from sonde.compress._grid import (
    SMALLEST,
    Symmetry,
    check_grid,
    codes_of,
    each_entry,
    grid_of,
    method_of,
    quantised,
)
from sonde.compress._layers import Weighted
from sonde.compress.coordinate_rounding import descended
from sonde.compress.gptq import loss_of, solved
from sonde.compress.grams import LayerGrams, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.stats.normal_equations import GRAM_CUT
from sonde.weights import Examples, Grid, Quantised, Rewrite, RewritePlan

MOST = 2**22
"""Numbers that are held at once while scales are fitted."""
DAMP = 0.01


@final
@dataclass(frozen=True)
class DecoupleQ(Rewrite):
    """Round weights to a grid whose scales and offsets are free variables.

    Takes turns: with the codes fixed, scales and offsets of a row are the solution of its normal
    equations ``min (s q + z - w) H (s q + z - w)^T``; with these fixed, codes are found as in
    ``GPTQ`` and then improved one by one as in ``CoordinateRounding``. A row takes a step if that
    lowers its error, with scales and offsets as they are kept, in bfloat16.

    Range        as ``RTN``; the error of a layer on the calibration inputs is never above that of
                 ``RTN`` nor that of ``GPTQ`` with the same grid.
    Cost         one pass over the data; in each round that of ``GPTQ``, and a system of two
                 equations for each group of every row.
    Assumes      inputs of the kind that the model will meet; all layers are fitted at the inputs of
                 the unrounded model.
    Differs      from the paper: no projected gradient before the rounding, codes are improved by
                 coordinates; norms and scales are not trained on blocks afterwards.

    Parameters
    ----------
    bits : int or None, default=2
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    rounds : int, default=4
        Most turns of both steps.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    guo2024decoupleq
    """

    bits: int | None = 2
    group: int = 32
    rounds: int = 4
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "guo2024decoupleq"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 3, "group": 5, "rounds": 2, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_grid("DecoupleQ", self.bits, self.group)
        check_ranges(self, rounds=">= 1")

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
        grid: tuple[int | None, int, Symmetry] = self.bits, self.group, "asymmetric"
        how = self.layers, grid, self._one, method_of("DecoupleQ", asdict(self))
        return round_each_layer("DecoupleQ", model, calibration, *how)

    def _one(
        self, layer: Weighted, model: Model, grams: LayerGrams
    ) -> tuple[Quantised, dict[str, float]]:
        assert self.bits is not None
        matrix = layer.matrix()
        grid = Grid.over(self.bits, self.group, matrix.shape[1])
        scale, offset = grid_of(matrix, grid)
        codes, lost = torch.empty_like(matrix), torch.zeros(2, dtype=torch.float64)
        for rows, h in parts_of(layer, model, grams):
            row = _Row(matrix[rows], h, grid, scale[rows], offset[rows])
            lost[1] += row.loss.sum().cpu()
            row.round_again(0)
            for _ in range(self.rounds):
                before = row.loss.clone()
                row.fit_scales()
                row.round_again(2)
                if not bool((row.loss < before * (1 - 1e-6)).any()):
                    break
            codes[rows], scale[rows], offset[rows] = row.codes, row.scale, row.offset
            lost[0] += row.loss.sum().cpu()
        figures = {"loss": float(lost[0]), "loss_rtn": float(lost[1])}
        return quantised(codes, scale, offset, grid, layer), figures


class _Row:
    """Rows that are being rounded, with their codes, scales, offsets and errors."""

    def __init__(self, w: Tensor, h: Tensor, grid: Grid, scale: Tensor, offset: Tensor) -> None:
        self.w, self.h, self.grid = w, h, grid
        self.scale, self.offset = scale, offset
        scales, offsets = self._each(scale, offset)
        self.codes = codes_of(w, scales, offsets, grid.bits)
        self.loss = self._loss(self.codes, scale, offset)

    def fit_scales(self) -> None:
        """Use the best scales and offsets for the codes, if they lower the error."""
        n, half = self.w.shape[1], 2 ** (self.grid.bits - 1)
        signed = functional.pad(self.codes - half, (0, -n % self.grid.group))
        step = max(1, MOST // max(1, signed.shape[1] * self.grid.n_groups(n)))
        pairs = [best_scales(self.w[i : i + step], self.h, signed[i : i + step], self.grid)
                 for i in range(0, len(self.w), step)]  # fmt: skip
        scale, offset = (torch.cat(parts).bfloat16() for parts in zip(*pairs, strict=True))
        flat = scale.abs() < SMALLEST
        scale, offset = torch.where(flat, self.scale, scale), torch.where(flat, self.offset, offset)
        self._take(self.codes, scale, offset)

    def round_again(self, sweeps: int) -> None:
        """Use codes that compensate one another's errors, if they lower the error."""
        one, two = self._each(self.scale, self.offset)
        codes = solved(self.w, one, two, self.h, self.grid.bits, DAMP, ordered=True)
        self._take(codes, self.scale, self.offset)
        if sweeps:
            one, two = self._each(self.scale, self.offset)
            codes = descended(self.w, one, two, self.h, self.grid.bits, self.codes, sweeps)
            self._take(codes, self.scale, self.offset)

    def _take(self, codes: Tensor, scale: Tensor, offset: Tensor) -> None:
        loss = self._loss(codes, scale, offset)
        better = loss < self.loss
        own = (self.codes, self.scale, self.offset)
        self.codes, self.scale, self.offset = (
            torch.where(better[:, None], new, old)
            for new, old in zip((codes, scale, offset), own, strict=True)
        )
        self.loss = torch.where(better, loss, self.loss)

    def _loss(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        scales, offsets = self._each(scale, offset)
        half = 2 ** (self.grid.bits - 1)
        return loss_of(self.w - ((codes - half) * scales + offsets), self.h)

    def _each(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        group, n = self.grid.group, self.w.shape[1]
        return each_entry(scale, group, n), each_entry(offset, group, n)


def best_scales(
    w: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    signed: Float[Tensor, "out wide"],
    grid: Grid,
) -> tuple[Float[Tensor, "out group"], Float[Tensor, "out group"]]:
    """Return the scale and offset of each group that minimise the error for given codes.

    Solves the normal equations of each row, of two unknowns for each group. If there are several
    solutions, the solution of least norm is taken.

    Parameters
    ----------
    w : Float[Tensor, "out in"]
    h : Float[Tensor, "in in"]
    signed : Float[Tensor, "out wide"]
        Codes less half of their range, 0 behind the end of the row.
    grid : Grid
    """
    n, group = w.shape[1], grid.group
    short = signed.shape[1] - n
    wide = functional.pad(h, (0, short, 0, short)).reshape(-1, group, grid.n_groups(n), group)
    there = functional.pad(torch.ones_like(w[:1]), (0, short)).reshape(-1, group)
    q = signed.reshape(len(w), -1, group)
    ones = there.expand(len(w), -1, -1)
    both = torch.stack([q, ones], 1)  # row, kind, group, entry
    pulled = torch.einsum("gikj,rckj->rckgi", wide, both)
    system = torch.einsum("rbgi,rckgi->rbgck", both, pulled)
    aims = functional.pad(w @ h, (0, short)).reshape(len(w), -1, group)
    right = torch.einsum("rbgi,rgi->rbg", both, aims)
    size = 2 * grid.n_groups(n)
    system, right = system.reshape(len(w), size, size), right.reshape(len(w), size)
    solution = torch.linalg.pinv(system, rtol=GRAM_CUT, hermitian=True) @ right[..., None]
    scale, offset = solution.reshape(len(w), 2, -1).unbind(1)
    return scale, offset
