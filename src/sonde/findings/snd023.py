"""SND023: rows that are nearly identical."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.findings._halves import interval
from sonde.findings._places import (
    log_effect,
    places,
    reached,
    read_command,
    rows_of,
    sentence,
    too_few,
)
from sonde.findings._text import number, percent
from sonde.findings.evidence import Evidence, SiteEvidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme

GROUPS, UNITS = 32, 8


@final
@dataclass(frozen=True)
class SND023(Rule):
    """Spread of rows over the length of their mean, without the units of largest mean.

    Parameters
    ----------
    note, warning, error : float
        Spread over mean.
    """

    note: float = 0.1
    warning: float = 0.03
    error: float = 1e-4
    code: ClassVar[str] = "SND023"
    title: ClassVar[str] = "Rows nearly identical (anisotropy)"
    theme: ClassVar[Theme] = "depth"
    why: ClassVar[str] = "Cosine cannot tell such rows apart: centre them first."
    how: ClassVar[str] = (
        "r = sqrt(trace of the covariance) / |mean| over all rows, after the 1 % of units (at "
        "least 3) with the largest squared mean are left out; the mean cosine of two rows is "
        "1 / (1 + r^2)."
    )
    false_positives: ClassVar[str] = "A note is common in trained language models."
    plant: ClassVar[str] = "Twenty Linear + ReLU with default initialisation."
    twin: ClassVar[str] = "A vision transformer with a bias of 3,000 on one unit (SND016 alone)."

    def check(self, evidence: Evidence) -> Check:
        """Compare spread and mean at every site."""
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        values = {s.name: r for s in evidence.sites if (r := spread_per_mean(s)) is not None}
        sites = [s for s in evidence.sites if s.name in values]
        if not sites:
            return self.not_applicable(f"no site has {UNITS} units and a mean")
        worst = min(sites, key=lambda s: values[s.name])
        value = values[worst.name]
        level = reached(value, self.note, self.warning, self.error, below=True)
        figure = Figure(
            "spread_per_mean", value, *self._ends(worst, value, evidence.n_groups), unit="ratio",
            threshold=level[1] if level else self.note, direction="below",
            n_rows=worst.all.scalars.n, n_groups=evidence.n_groups,
        )  # fmt: skip
        if level is None:
            return self.clear(figure, values=values)
        names = [s.name for s in sites if values[s.name] < self.note]
        common = " (common)" if level[0] == "note" else ""
        cosine = 1 / (1 + value**2)
        text = (
            f"Rows at {places(names)} differ by {percent(value)} of their mean's length{common}: "
            f"mean cosine {_cosine(cosine, value)}; below {percent(level[1])} counts."
        )
        return self.raised(
            Finding(
                code=self.code,
                level=level[0],
                sentence=sentence(text, f"{rows_of(worst, evidence)}."),
                figure=figure,
                sites=tuple(names),
                effect=1.0 - log_effect(value, 1e-6, self.note),
                next=read_command(worst.name),
                common=level[0] == "note",
            ),
            values=values,
        )

    def _ends(
        self, site: SiteEvidence, value: float, n_groups: int
    ) -> tuple[float | None, float | None]:
        if site.all.key != site.schema.key:
            return None, None
        kept = _kept(site.all.moments.mean).cpu()

        def figure(x: Float[Tensor, "row dim"]) -> float:
            return _spread(x[:, kept].mean(0), x[:, kept].var(0))

        return interval(value, site, n_groups, figure)


def spread_per_mean(site: SiteEvidence) -> float | None:
    """Return the spread of rows over the length of their mean; None where there is no mean."""
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
