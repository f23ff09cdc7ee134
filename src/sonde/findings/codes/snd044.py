"""SND044: rows resemble their neighbours in the file."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float
from scipy.stats import t
from torch import Tensor

from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import grouped_command, too_few
from sonde.findings.words.text import percent, plural
from sonde.stats.neighbour_sums import BLOCKS


@dataclass(frozen=True)
class _Steps:
    site: SiteEvidence
    value: float
    se: float
    pairs: int

    @property
    def z(self) -> float:
        if self.se > 0:
            return (1 - self.value) / self.se
        return math.inf if self.value < 1 else 0.0


@final
@dataclass(frozen=True)
class SND044(Rule):
    """Squared distance of consecutive rows, divided by that of independent rows."""

    below: float = 0.9
    errors: float = 5.0
    least: float = 96.0
    level: float = 0.001

    title: ClassVar[str] = "Rows resemble their neighbours in the file"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("sorted rows",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "The rows are not independent: standard errors and p-values that count each row alone are "
        "too small."
    )
    fix: ClassVar[str] = (
        "Use --group-column to name the column of rows that belong together, so that intervals "
        "and splits keep them together."
    )
    how: ClassVar[str] = (
        "Mean of |x_i - x_(i+1)|^2 over consecutive rows of different groups, divided by its "
        "expectation for independent rows: twice the variance. With labels, pairs with equal "
        "labels are compared with twice the variance within labels, so that a file sorted by "
        "label has ratio 1 too. Standard error by leaving out one of 16 interleaved blocks. A "
        "warning if no groups are given and p-values against OTHER are printed."
    )
    false_positives: ClassVar[str] = "Files sorted by source, or by labels that are not given."
    plant: ClassVar[str] = "Images whose brightness changes every 40 rows."
    twin: ClassVar[str] = "The same rows in random order."

    def check(self, evidence: Evidence) -> Check:
        """Compare the distance of consecutive rows with that of independent rows, at every site."""
        steps = [s for site in evidence.sites if (s := _steps(site)) is not None]
        if not steps:
            return self.withheld(
                "rows of one group are not adjacent, so neighbouring rows were not compared"
            )
        worst = min(steps, key=lambda s: s.value)
        if worst.pairs < self.least:
            return too_few(self, worst.pairs, int(self.least), "neighbouring rows")
        p = min(1.0, float(t.sf(worst.z, BLOCKS - 1)) * len(steps))
        figure = Figure(
            "neighbour_step",
            worst.value,
            worst.value - 2.13 * worst.se,
            worst.value + 2.13 * worst.se,
            "ratio",
            null=1.0,
            threshold=self.below,
            direction="below",
            p=p,
            n_rows=worst.site.n_rows,
            n_groups=evidence.n_groups,
        )
        if worst.value >= self.below or worst.z <= self.errors or p >= self.level:
            return self.clear(figure)
        severe = evidence.versus is not None and not evidence.data.grouped
        sites = tuple(s.site.schema.key for s in steps if s.value < self.below)
        return self.raised_with(
            "warning" if severe else "note",
            self._sentence(worst, " of different groups" if evidence.data.grouped else ""),
            figure,
            sites=sites,
            effect=max(0.0, min(1.0, 1 - worst.value)),
            next=grouped_command(evidence.data),
        )

    def _sentence(self, worst: _Steps, whose: str) -> str:
        return (
            f"Consecutive rows{whose} of the file are similar at {worst.site.name}: "
            f"their squared distance is {percent(worst.value)} of that of independent rows "
            f"({percent(max(0.0, worst.value - 2.13 * worst.se))} to "
            f"{percent(worst.value + 2.13 * worst.se)}). "
            f"{plural(worst.pairs, 'pair')}."
        )


def _steps(site: SiteEvidence) -> _Steps | None:
    sums = site.neighbours
    pairs = 0 if sums is None else int(sums.pairs.sum())
    if sums is None or pairs == 0 or site.moments.n < 2:
        return None
    value, se = sums.over(partial(_expected, site))
    return _Steps(site, value, se, pairs) if math.isfinite(value) else None


def _expected(site: SiteEvidence, alike: Float[Tensor, "*part"]) -> Float[Tensor, "*part"]:
    """Return the mean squared distance of independent rows with a fraction of equal labels.

    A step within a label counts ``2 W``, with ``W`` the variance around the labels' means. A step
    between labels counts the number that makes rows in random order give ``2 V`` on average, with
    ``V`` the variance.
    """
    n, classes = site.moments.n, site.classes
    scatter = site.moments.variance.sum() * n
    every = 2 * scatter / (n - 1) * torch.ones_like(alike)
    if classes is None or classes.n_rows > classes.n_labelled or not 1 < len(classes.labels) < n:
        return every
    weight = classes.weight
    apart = (classes.mean - classes.grand_mean).square().sum(1)
    within = 2 * (scatter - (weight * apart).sum()).clamp(min=0) / (n - len(weight))
    chance = (weight / weight.sum()).square().sum()
    return alike * within + (1 - alike) * (every - chance * within) / (1 - chance)
