"""SND024: tokens or patches of an example that become alike."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._places import (
    log_effect,
    places,
    reached,
    read_command,
    rows_of,
    sentence,
    too_few,
)
from sonde.findings._text import percent
from sonde.findings.evidence import Evidence, SiteEvidence
from sonde.findings.modules import ModelEvidence
from sonde.findings.rule import LEVELS, Check, Figure, Finding, Level, Rule, Theme

GROUPS = 32


@final
@dataclass(frozen=True)
class SND024(Rule):
    """Share of the variance of token rows that lies inside examples, median over units.

    Parameters
    ----------
    note, warning : float
        Share of the variance.
    late : float, default=2/3
        Depth from which on a model that pools its tokens afterwards gets a note at most.
    """

    note: float = 0.01
    warning: float = 0.001
    late: float = 2 / 3
    code: ClassVar[str] = "SND024"
    title: ClassVar[str] = "Tokens of an example become alike (over-smoothing)"
    theme: ClassVar[Theme] = "depth"
    why: ClassVar[str] = "What tells one token of an example from another is gone from here on."
    how: ClassVar[str] = (
        "Median over units of 1 - variance of example means / variance of rows, over all tokens or "
        "patches. 0.001 means that tokens differ by 3 % of the spread."
    )
    false_positives: ClassVar[str] = (
        "Models that pool all tokens afterwards lose nothing by it: a note at most late on."
    )
    plant: ClassVar[str] = "Attention blocks without a skip connection."
    twin: ClassVar[str] = "A trained vision transformer with mean pooling."

    def check(self, evidence: Evidence) -> Check:
        """Compare variance inside and between examples."""
        values = {s.name: v for s in evidence.sites if (v := within_share(s)) is not None}
        if not values:
            return self.not_applicable("no example has more than one row")
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        sites = [s for s in evidence.sites if s.name in values]
        levels = {s.name: self._level(s, values[s.name], evidence) for s in sites}
        worst = max(sites, key=lambda s: (_rank(levels[s.name]), -values[s.name]))
        value, level = values[worst.name], levels[worst.name]
        figure = Figure(
            "variance_inside_examples", value, unit="share",
            threshold=level[1] if level else self.note, direction="below",
            n_rows=worst.all.scalars.n, n_groups=evidence.n_groups,
        )  # fmt: skip
        if level is None:
            return self.clear(figure, values=values)
        names = [name for name, found in levels.items() if found is not None]
        what = "tokens" if worst.all.key.endswith("tokens") else "positions"
        text = (
            f"Inside an example {what} hold {percent(value)} of the variance at {places(names)}; "
            f"below {percent(level[1])} counts. {rows_of(worst, evidence)}."
        )
        pooled = "The model pools them afterwards." if self._is_late(worst, evidence) else ""
        return self.raised(
            Finding(
                code=self.code,
                level=level[0],
                sentence=sentence(text, pooled),
                figure=figure,
                sites=tuple(names),
                effect=1.0 - log_effect(value, 1e-6, self.note),
                next=read_command(worst.name),
            ),
            values=values,
        )

    def _level(
        self, site: SiteEvidence, value: float, evidence: Evidence
    ) -> tuple[Level, float] | None:
        found = reached(value, self.note, self.warning, below=True)
        if found and self._is_late(site, evidence):
            return "note", self.note
        return found

    def _is_late(self, site: SiteEvidence, evidence: Evidence) -> bool:
        model = evidence.model
        if not isinstance(model, ModelEvidence) or not model.pools:
            return False
        at = [s.schema.key for s in evidence.sites].index(site.schema.key)
        return at >= self.late * len(evidence.sites)


def _rank(found: tuple[Level, float] | None) -> int:
    return -1 if found is None else LEVELS.index(found[0])


def within_share(site: SiteEvidence) -> float | None:
    """Return the median share of variance inside examples; None without several rows in one."""
    groups = site.all.groups
    if groups is None or groups.rows.n <= groups.n_examples:
        return None
    alive = groups.rows.scatter > 0
    return float(groups.within_share[alive].median()) if bool(alive.any()) else None
