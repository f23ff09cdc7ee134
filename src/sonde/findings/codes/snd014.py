"""SND014: units that repeat another unit."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.findings.codes._site_rule import Measured, SiteRule, Worst
from sonde.findings.codes.snd022 import asked_for
from sonde.findings.evidence.modules.narrow_sites import fed_by_few, of_positions
from sonde.findings.evidence.record import Evidence, SiteEvidence, rows_as_float
from sonde.findings.rule import Breaks, Check, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, too_few
from sonde.findings.words.text import percent, plural
from sonde.stats import MomentsState


@final
@dataclass(frozen=True)
class SND014(SiteRule):
    """Pairs of units whose correlation is almost one, with and without the rows of largest norm.

    Parameters
    ----------
    correlation : float, default=0.9999
    trim : float, default=0.01
        Share of rows of largest norm that is left out of the second look.
    note, warning : float
        Share of the site's units that repeat another one.
    rows, active : int
        Least rows, and least non-zero values in a unit.
    units, numbers : int
        Least units of a site, and least numbers that feed it: two logits mirror each other, and
        units that see few numbers are all alike.
    explained : float, default=0.8
        Share of the variance that at most three classes, or one or two answers, may explain, as in
        SND022.
    """

    correlation: float = 0.9999
    trim: float = 0.01
    note: float = 0.02
    warning: float = 0.25
    rows: int = 256
    active: int = 64
    units: int = 8
    numbers: int = 8
    explained: float = 0.8
    title: ClassVar[str] = "Duplicated units"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("dead units",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = "Identical units can be merged, or a layer was copied by mistake."
    fix: ClassVar[str] = (
        "Keep one of the copies and add up their outgoing weights, or train again from another "
        "initialisation."
    )
    how: ClassVar[str] = (
        "Two units are copies if min(|r| on all rows, |r| without the 1 % of rows of largest "
        "norm) > 0.9999: they then differ by less than 1.4 % of their standard deviation. The "
        "largest rows are left out because a single huge row makes all units correlate. For a "
        "module that slides over an image, the units must be copies at single positions too. "
        "Constant units are left out; in a set of copies, all but one count. Not judged: sites "
        "of fewer than eight units, sites with fewer than eight inputs, and sites where the "
        "task needs only few directions (SND022)."
    )
    false_positives: ClassVar[str] = "At rank one (SND022), all units are copies of one another."
    plant: ClassVar[str] = "Half of a weight's rows copied onto the other half."
    twin: ClassVar[str] = "Units that correlate by 0.995."

    figure_name: ClassVar[str] = "repeated_units"

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Look for copies at every site."""
        if not evidence.sites:
            return self.withheld("no site has finite rows")
        most = max(s.moments.n for s in evidence.sites)
        if most < self.rows:
            return too_few(self, most, self.rows, "rows")
        fed = fed_by_few(evidence, self.numbers)
        sites = [s for s in evidence.sites if s.dim >= self.units and s.name not in fed]
        copies = {s.name: self._copies(s) for s in sites}
        for s in sites:
            if bool(copies[s.name].any()) and asked_for(s, evidence, self.explained):
                del copies[s.name]
        if not copies:
            return self.not_applicable(
                f"no site has {self.units} units, {self.numbers} inputs, and a task that needs "
                "more than one or two numbers"
            )
        shares = {n: float(c.double().mean()) for n, c in copies.items()}
        return Measured(shares, if_raised={"shares": shares}, kept=copies)

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of pooled rows, on which copies were counted."""
        return {"n_rows": site.moments.n}

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how many units repeat another unit."""
        site, count = worst.site, int(worst.kept.sum())
        return (
            f"{count:,} of {plural(site.dim, 'unit')} at {places([site.name])} "
            f"{'repeats' if count == 1 else 'repeat'} another within 1.4 % of its standard "
            f"deviation ({percent(worst.value)} of units; above {percent(worst.limit)} counts). "
            f"{plural(site.moments.n, 'row')}.",
            worst.also(),
        )

    def more(self, worst: Worst) -> dict[str, Any]:
        """List the repeated units."""
        return {"units": tuple(map(str, worst.kept.nonzero().flatten().tolist()[:20]))}

    def _copies(self, site: SiteEvidence) -> Bool[Tensor, "dim"]:
        """Return the units that repeat an earlier one."""
        nonzero = site.scalars.n - site.scalars.zeros
        usable = site.alive.cpu() & (nonzero.cpu() >= self.active)
        copy = torch.zeros(site.dim, dtype=torch.bool)
        units = usable.nonzero().flatten()
        if len(units) < 2:
            return copy
        pairs = torch.triu(self._correlations(site, units).abs() > self.correlation, diagonal=1)
        if not bool(pairs.any()):
            return copy
        involved = (pairs.any(0) | pairs.any(1)).nonzero().flatten()
        rows = self._trimmed(site)[:, units[involved]]
        both = pairs[involved][:, involved] & (_of_rows(rows).abs() > self.correlation)
        if (single := of_positions(site)) is not None:
            both &= _of_moments(single, units[involved]).abs() > self.correlation
        copy[units[involved[both.any(0)]]] = True
        return copy

    def _correlations(self, site: SiteEvidence, units: Tensor) -> Float[Tensor, "unit unit"]:
        if site.is_wide:
            return _of_rows(rows_as_float(site.sample)[:, units])
        return _of_moments(site.moments, units)

    def _trimmed(self, site: SiteEvidence) -> Float[Tensor, "row dim"]:
        rows = rows_as_float(site.sample)
        kept = len(rows) - max(1, round(self.trim * len(rows)))
        return rows[rows.norm(dim=1).argsort()[:kept]]


def _of_moments(moments: MomentsState, units: Tensor) -> Float[Tensor, "unit unit"]:
    chosen = moments.scatter.cpu()[units][:, units]
    root = chosen.diagonal().sqrt()
    return chosen / (root[:, None] * root)


def _of_rows(rows: Float[Tensor, "row unit"]) -> Float[Tensor, "unit unit"]:
    """Return correlations; 0 for a unit that is constant on these rows."""
    z = torch.where(rows.amax(0) > rows.amin(0), rows - rows.mean(0), 0.0)
    z = z / z.norm(dim=0).clamp(min=torch.finfo(z.dtype).tiny)
    return z.T @ z
