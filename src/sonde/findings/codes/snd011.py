"""SND011: units that never change."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.findings.codes._site_rule import Measured, Reached, SiteRule, Worst
from sonde.findings.evidence.modules.narrow_sites import is_input
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Explains, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import (
    counted_as,
    least_groups_for_silence,
    places,
    rows_of,
    too_few,
)
from sonde.findings.words.text import percent, plural

MISSED = 0.01


@final
@dataclass(frozen=True)
class SND011(SiteRule):
    """Units that have the same value on all rows: zero or another constant.

    Parameters
    ----------
    warning, error : float
        Share of the units of a site.
    """

    warning: float = 0.5
    error: float = 0.98
    title: ClassVar[str] = "Dead or constant units"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("dead units",)
    breaks: ClassVar[Breaks] = "all answers"
    panel: ClassVar[Panel] = "dead_share"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(
            ("SND014", "SND022", "SND023", "SND025"), reach="same or later", levels=("error",)
        ),
    )
    why: ClassVar[str] = "These units are unused capacity. If there are many, training went wrong."
    fix: ClassVar[str] = (
        "Prepare inputs as in training; if the units stay dead, train with a smaller learning "
        "rate or a leaky activation, or prune them."
    )
    how: ClassVar[str] = (
        "Units whose smallest and largest value over all rows are equal. For inputs that were "
        "not read the finding gives a bound: such a unit varies on fewer than 1 - (0.01 / "
        "units)^(1 / groups) of similar inputs, with 99 % confidence for all units of the site "
        "together. Sites that hold the model's input, such as the output of a Flatten, are left "
        "out: pixels at the margins of images are often constant."
    )
    false_positives: ClassVar[str] = (
        "Large ReLU language models really have silent units in early layers, up to half of "
        "them; these can be removed. Healthy small nets have up to 37 % at random "
        "initialisation."
    )
    plant: ClassVar[str] = (
        "Bias -100 on 60 % of the units before a ReLU; a weight with 55 % zero rows."
    )
    twin: ClassVar[str] = "A unit that fires on 1 % of 2,000 rows."

    figure_name: ClassVar[str] = "constant_units"

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Count constant units at every site that has enough groups."""
        g = evidence.n_groups
        models = [s for s in evidence.sites if not is_input(s, evidence)]
        if not models:
            return self.not_applicable("only the model's input was read")
        needs = {s.schema.key: least_groups_for_silence(s.dim) for s in models}
        sites = [s for s in models if g >= needs[s.schema.key]]
        if not sites:
            return too_few(self, g, min(needs.values(), default=1), counted_as(evidence))
        counts = {s.name: _constant(s) for s in sites}
        shares = {s.name: counts[s.name][0] / s.dim for s in sites}
        table = {name: {"constant": c, "zero": z} for name, (c, z) in counts.items()}
        return Measured(shares, if_raised={"counts": table}, kept=counts)

    def limits(self) -> dict[str, float]:
        """Return the limits; a single constant unit is a note."""
        return {"note": 0.0} | super().limits()

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level, or None if no unit is constant."""
        return super().level(site, value, evidence) if value > 0 else None

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of all rows, and a flag if units are constant."""
        return {"n_rows": site.all.scalars.n, "flags": ("dead",) if value > 0 else ()}

    def more(self, worst: Worst) -> dict[str, Any]:
        """List the units, and the sites of the same level."""
        return {"sites": tuple(_alike(worst)), "units": tuple(map(str, _units(worst.site)[:20]))}

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how many units are constant, and give a bound for unseen inputs."""
        at_level = _alike(worst)
        rest = len(worst.names) - len(at_level)
        return (
            self._text(worst.site, worst.kept, evidence),
            worst.also(names=at_level),
            f"Fewer units at {plural(rest, 'more site')}." if rest else "",
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
            f"{percent(bound)} of similar inputs (99 % confidence)."
        )


def _alike(worst: Worst) -> list[str]:
    """Return the sites that have the same level as the worst site."""
    return [name for name, level in worst.levels.items() if level == worst.level]


def _constant(site: SiteEvidence) -> tuple[int, int]:
    """Return how many units are constant, and how many of these are zero."""
    scalars = site.all.scalars
    constant = scalars.low == scalars.high
    return int(constant.sum()), int((constant & (scalars.low == 0)).sum())


def _units(site: SiteEvidence) -> list[int]:
    scalars = site.all.scalars
    return (scalars.low == scalars.high).nonzero().flatten().tolist()
