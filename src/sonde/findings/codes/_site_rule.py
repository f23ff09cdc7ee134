"""The base of rules that compute one number at each site and judge the worst number."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import LEVELS, Check, Figure, Finding, Level, Rule
from sonde.findings.words.places import places, reached, read_command, sentence

Reached = tuple[Level, float] | None


@dataclass(frozen=True)
class Measured:
    """The number at each site that the rule judges, by the site's name.

    Parameters
    ----------
    values : mapping of str to float
    tables, if_raised : mapping of str
        What a report shows beside the figure: always, or only if the rule is raised.
    kept : mapping of str
        What the sentence needs besides, by the site's name.
    """

    values: Mapping[str, float]
    tables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    if_raised: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kept: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Worst:
    """The worst site, its number, the level and limit that it reached, and all sites' levels."""

    site: SiteEvidence
    value: float
    level: Level
    limit: float
    levels: Mapping[str, Level]
    figure: Figure
    found: Measured

    @property
    def names(self) -> list[str]:
        """The sites that reached a level, in order of execution."""
        return list(self.levels)

    @property
    def kept(self) -> Any:
        """Data about the worst site, for the sentence."""
        return self.found.kept[self.site.name]

    def also(self, words: str = "Also", names: list[str] | None = None) -> str:
        """Return a sentence that lists the other sites, empty if there are none."""
        others = [n for n in names or self.names if n != self.site.name]
        return f"{words} at {places(others)}." if others else ""


@dataclass(frozen=True)
class SiteRule(Rule):
    """A rule that computes one number at each site and compares it with the limit of each level.

    Figure and sentence come from the site of the highest level, and in a tie from the most extreme
    number. All sites that reach a level are named. A subclass says what is measured (``measured``)
    and in which words (``said``); its fields ``note``, ``warning`` and ``error`` are the limits.
    A rule that differs from this overrides the other methods.

    Attributes
    ----------
    figure_name, unit : str
        Name and unit of the figure.
    below : bool
        Whether numbers below a limit reach it, instead of those at or above it.
    """

    figure_name: ClassVar[str]
    unit: ClassVar[str] = "share"
    below: ClassVar[bool] = False

    @abstractmethod
    def measured(self, evidence: Evidence) -> Measured | Check:
        """Return the number of each site, or the reason why there is none."""

    @abstractmethod
    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Return the parts of the sentence; later parts are dropped if it gets too long."""

    def limits(self) -> dict[str, float]:
        """Return the limit of each level, mildest level first."""
        return {level: getattr(self, level) for level in LEVELS if hasattr(self, level)}

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level that a site's number reaches, and its limit."""
        return reached(value, **self.limits(), below=self.below)

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return fields of the figure: ``n_rows``, and if known ``low``, ``high``, ``flags``."""
        return {"n_rows": site.all.scalars.n}

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return fields of the finding that replace or extend the usual fields."""
        return {}

    def check(self, evidence: Evidence) -> Check:
        """Measure every site and report the worst."""
        measured = self.measured(evidence)
        if isinstance(measured, Check):
            return measured
        sites = {s.name: s for s in evidence.sites if s.name in measured.values}
        levels = {n: self.level(s, measured.values[n], evidence) for n, s in sites.items()}
        sign = -1 if self.below else 1
        name = max(sites, key=lambda n: (_rank(levels[n]), sign * measured.values[n]))
        site, value, at = sites[name], measured.values[name], levels[name]
        figure = Figure(
            self.figure_name,
            value,
            unit=self.unit,
            threshold=at[1] if at else next(iter(self.limits().values())),
            direction="below" if self.below else "above",
            n_groups=evidence.n_groups,
            **self.basis(site, value, evidence),
        )
        if at is None:
            return self.clear(figure, **measured.tables)
        seen: dict[str, Level] = {n: own[0] for n, own in levels.items() if own}
        worst = Worst(site, value, *at, seen, figure, measured)
        fields = {
            "level": worst.level,
            "sentence": sentence(*self.said(worst, evidence)),
            "sites": tuple(worst.names),
            "effect": value,
            "next": read_command(name),
            **self.more(worst),
        }
        return self.raised(
            Finding(self.code, figure=figure, **fields), **measured.tables, **measured.if_raised
        )


def _rank(found: Reached) -> int:
    return -1 if found is None else LEVELS.index(found[0])
