"""Random rows from each range of a unit's values, halving from its largest value."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats._powers import power_of_two
from sonde.stats._reaching import growing_parts, reaching

NONE = -5000
LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class OctaveSampleState(State):
    """Up to ``m`` rows per unit and range, by ascending key; the last range holds the rest.

    Range ``b`` holds values in ``[2^(top - b - 1), 2^(top - b))``. ``key`` is the draw, mapped to
    signed numbers of equal order; the largest integer marks an empty place.
    """

    n: int
    top: Int[Tensor, "dim"]
    values: Float[Tensor, "range m dim"]
    key: Int[Tensor, "range m dim"]
    ids: Int[Tensor, "range m dim 2"]
    position: Int[Tensor, "range m dim"]

    @property
    def filled(self) -> Tensor:
        """Mask of the positions with a row."""
        return self.key != LAST


@final
@dataclass(frozen=True)
class OctaveSample(Statistic[OctaveSampleState]):
    """Rows with the smallest sampling keys in a few ranges below each unit's maximum.

    Ranges are those between the powers of two below the largest value; everything smaller, and what
    is not positive, is one range more. Each range of the whole data consists of whole ranges of
    each part of the data, so any split gives the same rows.

    Parameters
    ----------
    m : int, default=3
        Rows of each range.
    octaves : int, default=4
        Ranges above the rest.
    """

    m: int = 3
    octaves: int = 4

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 1", octaves=">= 1")

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of float32 values with their positions."""
        return dims[0] * (8 + (self.octaves + 1) * self.m * 36)

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> OctaveSampleState:
        """Return the sample of a batch; rows are read in the order of their draws."""
        order = torch.argsort(rank_key(draw), stable=True)
        state = self._empty(x)
        for rows in growing_parts(order):
            state = self.update(state, x[rows.to(x.device)], draw[rows], ids[rows], position[rows])
        return state

    def update(
        self,
        state: OctaveSampleState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        position: Int[Tensor, "row"],
    ) -> OctaveSampleState:
        """Return the sample after these rows; only values that may enter are examined."""
        x = x.detach().cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        key, bounds = rank_key(draw), self._bounds(state, x)
        last = state.key[:, -1]
        row, unit = reaching(
            x, key, lambda own: torch.where(own < last, bounds[1:], bounds[0]).amin(0)
        )
        value = x[row, unit]
        octave = torch.where(value > 0, torch.frexp(value).exponent.long(), NONE)
        top = state.top.scatter_reduce(0, unit, octave, "amax")
        state = replace(self._shifted(state, top), n=state.n + len(x))
        band = (top[unit] - octave).clamp(max=self.octaves)
        band = torch.where(octave == NONE, self.octaves, band)
        near = key[row] < state.key[band, -1, unit]
        if not bool(near.any()):
            return state
        row, unit, band, value = row[near], unit[near], band[near], value[near]
        columns = (value, key[row], ids[row], position[row])
        return self._placed(state, band, unit, columns)

    def merge(self, a: OctaveSampleState, b: OctaveSampleState) -> OctaveSampleState:
        """Return the rows with the smallest sampling keys among both samples."""
        top = torch.maximum(a.top, b.top)
        a, b = self._shifted(a, top), self._shifted(b, top)
        parts = {
            name: torch.cat([getattr(a, name), getattr(b, name)], dim=1)
            for name in ("values", "key", "ids", "position")
        }
        return OctaveSampleState(a.n + b.n, top, **self._first(parts))

    def _bounds(
        self, state: OctaveSampleState, x: Float[Tensor, "row dim"]
    ) -> Float[Tensor, "range1 dim"]:
        """Return the first range's upper end, then every range's lower end.

        A value at or above the upper end shifts the ranges. A full range takes no row of a larger
        draw than its last row.
        """
        octave = state.top - torch.arange(self.octaves + 1)[:, None]
        least = torch.nextafter(x.new_zeros(()), x.new_ones(()))
        ends = power_of_two(octave).to(x).clamp(min=least)
        return torch.cat([ends, torch.full_like(ends[:1], -torch.inf)])

    def _empty(self, x: Float[Tensor, "row dim"]) -> OctaveSampleState:
        shape = (self.octaves + 1, self.m, x.shape[1])
        return OctaveSampleState(
            0,
            torch.full((x.shape[1],), NONE, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32),
            torch.full(shape, LAST, dtype=torch.int64),
            torch.zeros(*shape, 2, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int64),
        )

    def _shifted(self, state: OctaveSampleState, top: Int[Tensor, "dim"]) -> OctaveSampleState:
        """Return the sample with ranges below new maxima; rows below them join the last range."""
        moved = torch.nonzero(top != state.top).flatten()
        if len(moved) == 0:
            return state
        octave = torch.where(
            state.values[..., moved] > 0,
            torch.frexp(state.values[..., moved]).exponent.long(),
            NONE,
        )
        band = (top[moved] - octave).clamp(max=self.octaves)
        empty = self._empty(state.values[0])
        new = replace(
            state,
            top=top,
            **{
                name: getattr(state, name).index_copy(2, moved, getattr(empty, name)[:, :, moved])
                for name in ("values", "key", "ids", "position")
            },
        )
        old, place, unit = torch.nonzero(state.filled[..., moved], as_tuple=True)
        if len(old) == 0:
            return new
        at = (old, place, moved[unit])
        columns = (state.values[at], state.key[at], state.ids[at], state.position[at])
        return self._placed(new, band[old, place, unit], moved[unit], columns)

    def _placed(
        self, state: OctaveSampleState, band: Tensor, unit: Tensor, columns: tuple[Tensor, ...]
    ) -> OctaveSampleState:
        """Return the sample with further rows, each in its unit's range."""
        dim = state.key.shape[2]
        cell = band * dim + unit
        order = torch.argsort(columns[1], stable=True)
        order = order[torch.argsort(cell[order], stable=True)]
        cells, member, count = torch.unique_consecutive(
            cell[order], return_inverse=True, return_counts=True
        )
        place = torch.arange(len(order)) - (count.cumsum(0) - count)[member]
        kept = place < self.m
        order, member, place = order[kept], member[kept], place[kept]
        bands, units = cells // dim, cells % dim
        parts: dict[str, Tensor] = {}
        for name, column in zip(("values", "key", "ids", "position"), columns, strict=True):
            old = getattr(state, name)[bands, :, units].movedim(0, 1)
            fill = LAST if name == "key" else 0
            new = torch.full_like(old, fill)
            new[place, member] = column[order].to(old)
            parts[name] = torch.cat([old, new])[None]
        first = self._first(parts)
        fields: dict[str, Tensor] = {}
        for name, column in first.items():
            fields[name] = getattr(state, name).clone()
            fields[name][bands, :, units] = column[0].movedim(1, 0)
        return replace(state, **fields)

    def _first(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the ``m`` entries with the smallest sampling keys along the second axis."""
        key, order = parts["key"].sort(dim=1, stable=True)
        columns = {"key": key[:, : self.m]}
        for name in ("values", "ids", "position"):
            column = parts[name]
            index = order[:, : self.m]
            index = index if name != "ids" else index[..., None].expand(*index.shape, 2)
            columns[name] = column.gather(1, index)
        return columns
