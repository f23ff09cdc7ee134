"""Example rows of a unit: the rows with its largest values, and some from each range of values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, marks
from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.stats import OctaveSample, OctaveSampleState, TopK, TopKState
from sonde.stats.octave_sample import LAST

REST = "rest"


@final
@dataclass(frozen=True)
class Exemplar:
    """One value of a unit and its row.

    Parameters
    ----------
    value : float
        The unit's value.
    ids : (int, int)
        Two words of the example's id, as in the column ``ids``.
    position : int
        Token, patch or line of the row in its example.
    range : str
        ``"top"``; the bounds of a range in the unit's own values, as ``"4 to 8"``; or ``"rest"``.
    """

    value: float
    ids: tuple[int, int]
    position: int
    range: str


@final
@dataclass(frozen=True, kw_only=True)
class ExemplarsResult(Result):
    """``value`` is the largest value of each unit; ``of`` lists a unit's rows."""

    top: TopKState
    middle: OctaveSampleState

    def of(self, unit: int) -> tuple[Exemplar, ...]:
        """Return the rows of a unit: the largest ones, then some of each lower range.

        Raises
        ------
        InputError
            If there is no such unit.
        """
        dim = self.top.values.shape[1]
        if not 0 <= unit < dim:
            raise InputError(f"ExemplarsResult.of: expected a unit below {dim}, got {unit}.")
        return tuple(self._rows(unit))

    def _rows(self, unit: int) -> Iterator[Exemplar]:
        best: TopKState | OctaveSampleState = self.top
        for i in range(len(self.top.values)):
            yield _exemplar(best, (i, unit), "top")
        n_ranges, m, _ = self.middle.values.shape
        power = 2.0 ** int(self.middle.top[unit])
        for b in range(n_ranges):
            low, high = power * 2.0 ** -(b + 1), power * 2.0**-b
            words = REST if b == n_ranges - 1 else f"{low:g} to {high:g}"
            for i in range(m):
                if int(self.middle.key[b, i, unit]) != LAST:
                    yield _exemplar(self.middle, (b, i, unit), words)

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return every exemplar: unit, range, value, position and the two words of its id."""
        rows: list[dict[str, Any]] = [
            {
                "unit": unit,
                "range": one.range,
                "value": one.value,
                "position": one.position,
                "id_low": one.ids[0],
                "id_high": one.ids[1],
            }
            for unit in range(self.top.values.shape[1])
            for one in self._rows(unit)
        ]
        return pa.Table.from_pylist(rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def chart(self) -> Chart:
        """Return the exemplars' values of each unit, by range."""
        rows = self.table().select(["unit", "range", "value"]).to_pylist()  # pyright: ignore[reportUnknownMemberType]
        return marks(self.title, rows, "unit", "value", by="range")


def _exemplar(state: TopKState | OctaveSampleState, at: tuple[int, ...], said: str) -> Exemplar:
    words: Int[Tensor, 2] = state.ids[at]
    value: Float[Tensor, ""] = state.values[at]
    pair = (int(words[0]), int(words[1]))
    return Exemplar(float(value), pair, int(state.position[at]), said)


@final
@dataclass(frozen=True)
class Exemplars(Instrument):
    """Rows with the largest values of each unit, and random rows from each range of its values.

    The largest rows alone mislead: most of a unit's values lie in between. Ranges lie between
    powers of two, from the unit's largest value down; the last range holds all smaller values, also
    0 and below.

    Range        (-inf, inf), values of the unit; higher = more active. The largest first, ties by
                 the hash of the row.
    Cost         one pass; state ``36 dim (n + m (octaves + 1))`` bytes, whatever the number of
                 rows.
    Assumes      nothing. Units that mean something below 0 want a second fit on the negated rows.

    Parameters
    ----------
    n : int, default=20
        Largest rows of each unit.
    m : int, default=3
        Rows of each range.
    octaves : int, default=4
        Ranges above the rest.

    Examples
    --------
    >>> import torch
    >>> found = Exemplars(n=2, m=1, octaves=1).fit(torch.tensor([[1.0], [8.0], [5.0], [-3.0]]))
    >>> [(one.value, one.range) for one in found.of(0)]
    [(8.0, 'top'), (5.0, 'top'), (8.0, '8 to 16'), (-3.0, 'rest')]

    References
    ----------
    olah2017feature
    """

    n: int = 20
    m: int = 3
    octaves: int = 4
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "olah2017feature"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"n": 3, "m": 1, "octaves": 2})

    def __post_init__(self) -> None:
        check_ranges(self, n=">= 1", m=">= 1", octaves=">= 1")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the largest rows, and the rows of each range."""
        return {"top": TopK(self.n), "middle": OctaveSample(self.m, self.octaves)}

    def result(self, top: TopKState, middle: OctaveSampleState) -> ExemplarsResult:
        """Return the rows of each unit."""
        return ExemplarsResult(
            value=top.values[0].double(),
            n=top.n,
            direction="none",
            conventions={"se": "none: rows that were seen", "ties": "smaller draw first"},
            top=top,
            middle=middle,
        )
