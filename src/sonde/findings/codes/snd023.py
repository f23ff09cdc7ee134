"""SND023: rows that are nearly identical."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.findings.codes._site_rule import Measured, Reached, SiteRule, Worst
from sonde.findings.evidence.half_intervals import interval
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Explains, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import log_effect, places, rows_of, too_few
from sonde.findings.words.text import number, percent

GROUPS, UNITS = 32, 8


@final
@dataclass(frozen=True)
class SND023(SiteRule):
    """Standard deviation of rows over the length of their mean, without the largest units.

    Parameters
    ----------
    note, warning, error : float
        Spread over mean.
    """

    note: float = 0.1
    warning: float = 0.03
    error: float = 1e-4
    title: ClassVar[str] = "Rows nearly identical (anisotropy)"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("rank collapse",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "spread"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND002", "SND011"), reach="same or later"),
    )
    why: ClassVar[str] = "Cosine cannot separate such rows: centre them first."
    fix: ClassVar[str] = "Subtract the mean row before you compare rows by cosine."
    how: ClassVar[str] = (
        "r = sqrt(trace of the covariance) / |mean| over all rows, after the 1 % of units (at "
        "least 3) with the largest squared mean are left out; the mean cosine of two rows is 1 "
        "/ (1 + r^2) at such r, where rows are about equally long. A note at most if the rows "
        "differ clearly at the last site, because later layers separate them."
    )
    false_positives: ClassVar[str] = "A note is common in trained language models."
    plant: ClassVar[str] = "Twenty Linear + ReLU with default initialisation."
    twin: ClassVar[str] = "A vision transformer with a bias of 3,000 on one unit (SND016 alone)."

    figure_name: ClassVar[str] = "spread_per_mean"
    unit: ClassVar[str] = "ratio"
    below: ClassVar[bool] = True

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Compare the standard deviation with the mean at every site."""
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        values = {s.name: r for s in evidence.sites if (r := spread_per_mean(s)) is not None}
        if not values:
            return self.not_applicable(f"no site has {UNITS} units and a mean")
        return Measured(values, {"values": values})

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of all rows, and an interval if these are the pooled rows."""
        n_rows = {"n_rows": site.all.scalars.n}
        if site.all.key != site.schema.key:
            return n_rows
        kept = _kept(site.all.moments.mean).cpu()

        def figure(x: Float[Tensor, "row dim"]) -> float:
            return _spread(x[:, kept].mean(0), x[:, kept].var(0))

        low, high = interval(value, site, evidence.n_groups, figure)
        return n_rows | {"low": low, "high": high}

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level; at most a note if rows differ again at the last site."""
        level = super().level(site, value, evidence)
        last = spread_per_mean(evidence.sites[-1])
        is_used = last is None or last < self.note
        return level if level is None or is_used else ("note", self.note)

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how much rows differ."""
        value, common = worst.value, " (common)" if worst.level == "note" else ""
        return (
            f"Rows at {places(worst.names)} differ by {percent(value)} of their mean's "
            f"length{common}: mean cosine {_cosine(1 / (1 + value**2), value)} (limit "
            f"{percent(worst.limit)}).",
            f"{rows_of(worst.site, evidence)}.",
        )

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return the effect: 1 at a relative standard deviation of a millionth."""
        effect = 1.0 - log_effect(worst.value, 1e-6, self.note)
        return {"effect": effect, "common": worst.level == "note"}


def spread_per_mean(site: SiteEvidence) -> float | None:
    """Return the standard deviation of rows over the length of their mean, or None."""
    moments = site.all.moments
    if site.dim < UNITS:
        return None
    kept = _kept(moments.mean)
    value = _spread(moments.mean[kept], moments.variance[kept])
    return value if math.isfinite(value) else None


def _kept(mean: Float[Tensor, "dim"]) -> Bool[Tensor, "dim"]:
    count = max(3, math.ceil(0.01 * len(mean)))
    kept = torch.ones(len(mean), dtype=torch.bool, device=mean.device)
    kept[torch.topk(mean.square(), count).indices] = False
    return kept


def _spread(mean: Float[Tensor, "unit"], variance: Float[Tensor, "unit"]) -> float:
    length = float(mean.norm())
    return float(variance.sum().sqrt()) / length if length > 0 else math.inf


def _cosine(cosine: float, r: float) -> str:
    return number(cosine, 3) if r > 0.03 else f"1 - {number(r * r / (1 + r * r))}"
