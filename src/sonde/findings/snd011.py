"""SND011: units that never change."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._feeding import is_input
from sonde.findings._places import (
    counted_as,
    least_groups_for_silence,
    places,
    reached,
    read_command,
    rows_of,
    sentence,
    too_few,
)
from sonde.findings._text import percent, plural
from sonde.findings.evidence import Evidence, SiteEvidence
from sonde.findings.rule import LEVELS, Check, Figure, Finding, Rule, Theme

MISSED = 0.01


@final
@dataclass(frozen=True)
class SND011(Rule):
    """Units that are zero, or one other number, on all rows.

    Parameters
    ----------
    warning, error : float
        Share of the units of a site.
    """

    warning: float = 0.5
    error: float = 0.98
    code: ClassVar[str] = "SND011"
    title: ClassVar[str] = "Dead or constant units"
    theme: ClassVar[Theme] = "units"
    why: ClassVar[str] = "Capacity that nothing uses; in large numbers, training went wrong."
    how: ClassVar[str] = (
        "Units whose smallest and largest value over all rows are equal. What was not seen is "
        "bounded: such a unit changes on fewer than 1 - (0.01 / units)^(1 / groups) of such "
        "inputs, 99 % sure for all units of the site together. Sites that hold the model's input, "
        "as a Flatten does, are left out: the margins of images are the same in all."
    )
    false_positives: ClassVar[str] = (
        "Large ReLU language models keep half of the units of early layers silent: then it is true "
        "and means removable. Healthy small nets have up to 37 % at random initialisation."
    )
    plant: ClassVar[str] = (
        "Bias -100 on 60 % of the units before a ReLU; a weight with 55 % zero rows."
    )
    twin: ClassVar[str] = "A unit that fires on 1 % of 2,000 rows."

    def check(self, evidence: Evidence) -> Check:
        """Count constant units at every site that has groups enough."""
        g = evidence.n_groups
        models = [s for s in evidence.sites if not is_input(s, evidence)]
        if not models:
            return self.not_applicable("no site but the model's input")
        needs = {s.schema.key: least_groups_for_silence(s.dim) for s in models}
        sites = [s for s in models if g >= needs[s.schema.key]]
        if not sites:
            return too_few(self, g, min(needs.values(), default=1), counted_as(evidence))
        counts = {s.name: _constant(s) for s in sites}
        hits = [s for s in sites if counts[s.name][0] > 0]
        worst = max(sites, key=lambda s: counts[s.name][0] / s.dim)
        share = counts[worst.name][0] / worst.dim
        level = reached(share, None, self.warning, self.error) or ("note", 0.0)
        figure = Figure(
            "constant_units", share, unit="share", threshold=level[1] if hits else 0.0,
            n_rows=worst.all.scalars.n, n_groups=g, flags=("dead",) if hits else (),
        )  # fmt: skip
        if not hits:
            return self.clear(figure)
        at_level = [s for s in hits if _level(self, counts[s.name][0] / s.dim) == level[0]]
        rest = len(hits) - len(at_level)
        return self.raised(
            Finding(
                code=self.code,
                level=level[0],
                sentence=sentence(
                    self._text(worst, counts[worst.name], evidence),
                    _elsewhere(at_level, worst),
                    f"Fewer at {plural(rest, 'more site')}." if rest else "",
                ),
                figure=figure,
                sites=tuple(s.name for s in at_level),
                units=tuple(str(u) for u in _units(worst)[:20]),
                effect=share,
                next=read_command(worst.name),
            ),
            counts={name: {"constant": c, "zero": z} for name, (c, z) in counts.items()},
        )

    def _text(self, site: SiteEvidence, count: tuple[int, int], evidence: Evidence) -> str:
        constant, zero = count
        bound = 1 - (MISSED / site.dim) ** (1 / evidence.n_groups)
        one = constant == 1
        what = "zero" if zero == constant else "constant"
        verb = "fires" if what == "zero" else "changes"
        return (
            f"{constant:,} of {plural(site.dim, 'unit')} at {places([site.name])} "
            f"{'is' if one else 'are'} {what} on all {rows_of(site, evidence)}, so "
            f"{'it ' + verb if one else 'they ' + verb.removesuffix('s')} on fewer than "
            f"{percent(bound)} of such inputs (99 % sure)."
        )


def _level(rule: SND011, share: float) -> str:
    found = reached(share, None, rule.warning, rule.error)
    return LEVELS[0] if found is None else found[0]


def _elsewhere(at_level: list[SiteEvidence], worst: SiteEvidence) -> str:
    others = [s.name for s in at_level if s is not worst]
    return f"Also at {places(others)}." if others else ""


def _constant(site: SiteEvidence) -> tuple[int, int]:
    """Return how many units are constant, and how many of them zero."""
    scalars = site.all.scalars
    constant = scalars.low == scalars.high
    return int(constant.sum()), int((constant & (scalars.low == 0)).sum())


def _units(site: SiteEvidence) -> list[int]:
    scalars = site.all.scalars
    return (scalars.low == scalars.high).nonzero().flatten().tolist()
