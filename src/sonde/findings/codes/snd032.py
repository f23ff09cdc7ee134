"""SND032: classes whose rows have collapsed to a point."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.evidence.answers.labels import LEAST_ROWS, blocked
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, too_few
from sonde.findings.words.text import number, percent, plural
from sonde.stats.class_moments import ClassMomentsState
from sonde.stats.halves import half_error, random_halves
from sonde.stats.linear_classifiers import fitted_on


@final
@dataclass(frozen=True)
class SND032(Rule):
    """Variance within classes over the variance between class means, at the last site."""

    nc1: float = 0.05
    explained: float = 0.95

    title: ClassVar[str] = "Classes have collapsed to points"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("neural collapse",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "Distances within a class carry no information, features transfer worse, and inputs "
        "that belong to no class can coincide with a class."
    )
    fix: ClassVar[str] = (
        "Stop the training earlier or add weight decay if rows within a class must stay "
        "distinguishable."
    )
    how: ClassVar[str] = (
        "At the last site: NC1 = tr(S_W S_B^+) / classes over averages, with class means "
        "weighted equally, and the fraction of the variance that lies between classes. Classes "
        "are the labels, or the model's own answers if there are no labels. The interval comes "
        "from random halves of the sampled groups."
    )
    false_positives: ClassVar[str] = (
        "Common on training data late in training; data with one row per class."
    )
    plant: ClassVar[str] = "Rows are their class mean plus 1 % of noise."
    twin: ClassVar[str] = "Test data of the same trained net."

    def check(self, evidence: Evidence) -> Check:
        """Measure the collapse at the last site."""
        site, shared = evidence.sites[-1], shared_rows(evidence)
        label, logits = shared.column("label"), shared.column("logits")
        stop = blocked(self, evidence)
        if evidence.data.has_labels and stop is not None:
            return stop
        wide = site.is_wide
        x = shared.x(len(evidence.sites) - 1)
        of_labels = site.classes is not None and stop is None
        if site.classes is not None and label is not None and stop is None:
            every = site.classes
        elif logits is not None:
            label = logits.argmax(1)
            every = fitted_on(x, label, wide)
        else:
            return self.not_applicable("the data have no labels and the model has no class outputs")
        large = every.labels[every.n >= LEAST_ROWS]
        if len(large) < 2:
            return too_few(self, len(large), 2, f"classes of {LEAST_ROWS} rows")
        value, explained = collapse(every, large, x, label), _explained(every, large)
        if not math.isfinite(value):
            return self.withheld("the class means coincide")
        figure = self._figure(value, every, large, x, label, shared.group, wide)
        if not (value < self.nc1 and explained > self.explained):
            return self.clear(figure)
        what = "class" if of_labels else "class predicted by the model"
        sentence = (
            f"At {site.name}, {percent(explained, 3)} of the variance lies between classes and "
            f"the variance inside a {what} is {number(value)} of that between classes (NC1; "
            f"below {number(self.nc1)} counts as collapsed). {plural(figure.n_rows, 'row')}, "
            f"{plural(len(large), 'class', 'classes')}."
        )
        return self.raised_with(
            "note",
            sentence,
            figure,
            sites=(site.schema.key,),
            effect=explained,
            next=read_command(site.schema.key),
        )

    def _figure(
        self,
        value: float,
        every: ClassMomentsState,
        large: Int[Tensor, "class"],
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        wide: bool,
    ) -> Figure:
        kept = torch.isin(label, large)
        x, label, group = x[kept], label[kept], group[kept]
        halves = []
        for half in random_halves(group):
            if len(torch.unique(label[half])) < 2:
                continue
            part = fitted_on(x[half], label[half], wide)
            halves.append(collapse(part, part.labels, x[half], label[half]))
        n_groups = len(torch.unique(group))
        se = float(half_error(torch.tensor(halves), group)) if len(halves) > 2 else math.nan
        has_error = math.isfinite(se)
        return Figure(
            "nc1",
            value,
            value - 1.96 * se if has_error else None,
            value + 1.96 * se if has_error else None,
            "ratio",
            threshold=self.nc1,
            direction="below",
            n_rows=int(every.n[torch.isin(every.labels, large)].sum()),
            n_groups=n_groups,
        )


def collapse(
    classes: ClassMomentsState,
    kept: Int[Tensor, "kept"],
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
) -> float:
    """Return ``tr(S_W S_B^+) / classes``; NaN if the means of the kept classes coincide.

    ``S_W`` has the divisor rows - classes, because a class of one row tells nothing of its spread.
    If only variances are kept, the spread inside classes along the directions between them comes
    from the rows ``x``.
    """
    at = torch.isin(classes.labels, kept)
    means = classes.mean[at]
    _, singular, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    real = singular > 1e-8 * singular.max()
    if not bool((singular > 0).any()):
        return math.nan
    singular, directions = singular[real], directions[real]
    if classes.scatter == "pooled":
        along = ((directions @ classes.pooled) * directions).sum(1) / _freedom(classes)
    else:
        inside = torch.isin(label, classes.labels)
        own = classes.mean[torch.searchsorted(classes.labels, label[inside])]
        along = ((x[inside] - own) @ directions.T).square().mean(0)
        along = along * classes.n_labelled / _freedom(classes)
    return float((along / singular.square()).sum())


def _explained(classes: ClassMomentsState, kept: Int[Tensor, "kept"]) -> float:
    """Return the fraction of the variance that lies between the kept classes."""
    at = torch.isin(classes.labels, kept)
    share = classes.weight[at] / classes.weight[at].sum()
    means = classes.mean[at]
    between = float(share @ (means - share @ means).square().sum(1))
    pooled = classes.pooled
    inside = float(pooled.sum() if pooled.ndim == 1 else pooled.trace()) / _freedom(classes)
    return between / (between + inside) if between + inside > 0 else 0.0


def _freedom(classes: ClassMomentsState) -> int:
    return max(classes.n_labelled - len(classes.labels), 1)
