"""Pictures of a report: a message, a drawing for each width, and the numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any, Final, final

from sonde.core.chart import Chart, ChartAxis
from sonde.report._format import shown
from sonde.report._select import drawn, short_names

_NAMED: Final = tuple(ascii_letters)
_FEW: Final = 12

Cell = str | float | int | None


@final
@dataclass(frozen=True)
class Numbers:
    """A table: column names, then rows; the first column is the header of its row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    name: str = "table"


@final
@dataclass(frozen=True)
class Picture:
    """A picture with its message and its numbers.

    Parameters
    ----------
    key : str
        Distinct on its page.
    message : str
        What the picture says, in one sentence; its title and its text alternative.
    draw : callable
        Width in pixels -> chart, as ``sonde.core.chart`` describes it.
    numbers : Numbers or None
        The table beside it.
    note : str
        How to read it, in one or two sentences.
    square : bool
        Narrower than the column on a wide page.
    """

    key: str
    message: str
    draw: Callable[[int], Chart]
    numbers: Numbers | None = None
    note: str = ""
    square: bool = False


@final
@dataclass(frozen=True)
class Axis:
    """The sites that are drawn and their short names."""

    sites: tuple[str, ...]
    names: dict[str, str]
    title: str

    @staticmethod
    def of(sites: list[str], limit: int = 100) -> "Axis":
        """Return the axis of at most ``limit`` of these sites."""
        kept = drawn(sites, limit)
        names, pattern = short_names(kept)
        return Axis(tuple(kept), names, pattern)

    @staticmethod
    def of_layers(sites: list[str], report: dict[str, Any]) -> "Axis":
        """Return the axis of sites; if a few sites have numbers as names, add class and width.

        Examples
        --------
        >>> row = {"site": "0:out", "module": "Linear", "dim": 64}
        >>> rows = [row, row | {"site": "2:out", "dim": 10}]
        >>> Axis.of_layers(["0:out", "2:out"], {"sites": rows}).labels
        ['0 Linear 64', '2 Linear 10']
        """
        axis = Axis.of(sites)
        bare = all(name.replace(".", "").isdigit() for name in axis.labels)
        if not bare or axis.title.startswith(_NAMED) or len(axis.sites) > _FEW:
            return axis
        kind = {row["site"]: f"{row['module']} {row['dim']}" for row in report["sites"]}
        names = {s: f"{name} {kind[s]}" if s in kind else name for s, name in axis.names.items()}
        return replace(axis, names=names)

    @property
    def labels(self) -> list[str]:
        """The short names in order."""
        return [self.names[site] for site in self.sites]

    def across(self, field: str = "s") -> ChartAxis:
        """Return a horizontal axis by the short names in column ``field``."""
        return ChartAxis(field, title=self.title, names=self.labels)

    def upward(self, field: str) -> ChartAxis:
        """Return a vertical axis: the last site at the top, the first at the bottom."""
        return ChartAxis(field, title=self.title, names=self.labels[::-1])

    def say(self, site: str) -> str:
        """Return a site's name for a sentence: the distinctive end of its path.

        Examples
        --------
        >>> Axis.of(["model.layers.0:out", "model.layers.1:out"]).say("model.layers.1:out")
        'layers.1'
        """
        if not self.title or site not in self.names:
            return shown(site, 60)
        head = self.title.split("*")[0]
        last = head.rstrip(".").rpartition(".")[2] if head.endswith(".") else ""
        return shown(f"{last}.{self.names[site]}" if last else self.names[site], 60)
