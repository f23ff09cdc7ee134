"""SND022: units that are almost perfectly correlated."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.codes._site_rule import Measured, Reached, SiteRule, Worst
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_answers import Heads
from sonde.findings.evidence.half_intervals import interval
from sonde.findings.evidence.modules.narrow_sites import (
    fed_by_few,
    means_alone,
    of_few_channels,
)
from sonde.findings.evidence.record import Evidence, SiteEvidence, rows_as_float
from sonde.findings.rule import Breaks, Check, Explains, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import log_effect, places, reached, too_few
from sonde.findings.words.text import number, percent, plural
from sonde.stats import ClassMoments, ClassMomentsState, MomentsState

GROUPS = 64


@final
@dataclass(frozen=True)
class SND022(SiteRule):
    """Participation ratio of the correlation matrix of pooled rows.

    Parameters
    ----------
    warning, error : float
        Number of directions below which a site has collapsed.
    units : int, default=8
        Sites with fewer units that vary are not judged, nor those that are fed by fewer numbers:
        few units have few directions.
    explained : float, default=0.8
        Share of the variance between at most three classes above which SND032 judges instead. Also
        the share of what one or two directions hold above which a model's one or two outputs
        account for these directions.
    one, two : float
        Part of a limit's distance from one direction that holds if the answers have one direction
        (one number, two classes), or two.
    """

    warning: float = 2.0
    error: float = 1.2
    units: int = 8
    explained: float = 0.8
    one: float = 0.01
    two: float = 0.3
    title: ClassVar[str] = "Rank collapse"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("rank collapse",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "participation_ratio"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND014",), reach="same"),)
    why: ClassVar[str] = (
        "All units are almost perfectly correlated: the layer carries a single number for each row."
    )
    fix: ClassVar[str] = (
        "Check that inputs are prepared as in training; if the rank stays low, add residual "
        "connections or a norm, and train again."
    )
    how: ClassVar[str] = (
        "D^2 / sum of squared correlations, over the D units that vary, on pooled rows (of "
        "images, signals and texts also on single positions; the higher rank counts). The "
        "raw covariance is not used: one large unit lowers its ratio to 1 in healthy networks. "
        "Sites with fewer than eight inputs or input channels are left out. Not raised if two "
        "or three classes account for 80 % of the variance, or if the model's output (its "
        "logits, else its last site) is one or two numbers that explain 80 % of the most that "
        "one or two directions can explain: nets with two or three classes and regressions need "
        "no more directions. If the answers have one direction (one number or two classes, also "
        "of each pixel) or two, the limits' distance from one direction shrinks to 1 % and 30 %. "
        "A note at most if one or two directions are left at a layer but more at the last site, "
        "because the layers between recover them."
    )
    false_positives: ClassVar[str] = (
        "Data that differ in one way only (one object, one brightness)."
    )
    plant: ClassVar[str] = "A weight replaced by its best approximation of rank one."
    twin: ClassVar[str] = "A convolutional net at random initialisation."

    figure_name: ClassVar[str] = "directions"
    unit: ClassVar[str] = ""
    below: ClassVar[bool] = True

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Measure every site with enough units, unless the task needs only few directions."""
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        fed = fed_by_few(evidence, self.units) | of_few_channels(evidence, self.units)
        sites = [s for s in evidence.sites if int(s.alive.sum()) >= self.units]
        sites = [s for s in sites if s.name not in fed]
        if not sites:
            return self.not_applicable(
                f"no site has {self.units} non-constant units that depend on at least "
                f"{self.units} inputs or input channels"
            )
        values = {s.name: directions(s) for s in sites}
        low = [s for s in sites if values[s.name] < self.warning]
        few = {s.name: why for s in low if (why := asked_for(s, evidence, self.explained))}
        if len(few) == len(sites):
            return self.withheld(few[low[-1].name])
        judged = {name: value for name, value in values.items() if name not in few}
        return Measured(judged, {"values": values})

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of pooled rows, and the interval of a figure computed on them."""
        low = high = None
        if value == _pooled(site):
            low, high = interval(
                value, site, evidence.n_groups, lambda x: _ratio(_correlations_of(x))
            )
        return {"n_rows": site.moments.n, "low": low, "high": high}

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level; at most a note if later layers recover the directions."""
        room = self._room(evidence)
        limits = {level: 1 + (limit - 1) * room for level, limit in self.limits().items()}
        reached_level = reached(value, **limits, below=True)
        is_mild = reached_level is not None and reached_level[0] == "warning"
        return ("note", limits["warning"]) if is_mild and self._widens(evidence) else reached_level

    def _room(self, evidence: Evidence) -> float:
        """Return the part of the limits, beyond one direction, that the answers' width leaves."""
        answers = evidence.columns.get("logits")
        if answers is not None and answers.rows.ndim == 2:
            width = answers.rows.shape[1] - (evidence.data.target is None)
        else:
            width = map_width(evidence)
        return 1.0 if width > 2 else self.two if width == 2 else self.one

    def _widens(self, evidence: Evidence) -> bool:
        """Return whether the last site varies in as many directions as a healthy one."""
        return directions(evidence.sites[-1]) >= self.warning

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe the number of directions in which the units vary."""
        site = worst.site
        return (
            f"The {plural(int(site.alive.sum()), 'unit')} that vary at {places([site.name])} "
            "span only "
            f"{_counted(worst.value)} (participation ratio of the correlations; limit "
            f"{number(worst.limit)}). {plural(site.moments.n, 'row')}.",
            worst.also(),
        )

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return the effect, which is 1 if a single direction is left."""
        return {"effect": 1.0 - log_effect(worst.value, 1.0, self.warning)}


def map_width(evidence: Evidence) -> int:
    """Return one less than the classes of a map of classes; 3 if the model answers no map."""
    heads = evidence.get(judge_heads)
    judged = heads.found if isinstance(heads, Heads) else ()
    widths = [
        len(h.parts) - 1 for h in judged if h.measure == "pixel_accuracy" and len(h.parts) > 1
    ]
    return max(widths, default=3)


def asked_for(site: SiteEvidence, evidence: Evidence, explained: float) -> str:
    """Return the reason why the task needs only few directions; empty if it needs more."""
    if means_alone(site):
        return (
            f"{places([site.name])} was read with mean pooling, where every unit "
            "follows the image's brightness"
        )
    share = few_classes(site, evidence)
    if share > explained:
        return (
            f"the differences between a few classes account for {percent(share)} of the "
            "variance: see SND032"
        )
    n, share = few_outputs(site, evidence)
    if share > explained:
        return (
            f"the model answers with {plural(n, 'number')}, which explain {percent(share)} of "
            f"the variance at {places([site.name])} that so few directions can explain"
        )
    return ""


def directions(site: SiteEvidence) -> float:
    """Return the participation ratio of the correlations of the units that vary.

    The ratio of single positions or tokens counts if it is larger: means over them can differ in
    one way alone, such as the length of a text.
    """
    single = site.all.eighth
    if single is None or single.scatter.ndim == 1:
        return _pooled(site)
    return max(_pooled(site), _of_moments(single))


def _pooled(site: SiteEvidence) -> float:
    if site.is_wide:
        return _ratio(_correlations_of(rows_as_float(site.sample)[:, site.alive.cpu()]))
    return _of_moments(site.moments)


def _of_moments(moments: MomentsState) -> float:
    alive = (moments.variance > 0).cpu()
    chosen = moments.scatter.cpu()[alive][:, alive]
    root = chosen.diagonal().sqrt()
    return _ratio(chosen / (root[:, None] * root))


def _correlations_of(rows: Float[Tensor, "row unit"]) -> Float[Tensor, "a a"]:
    """Return the smaller Gram matrix; its trace and sum of squares equal the correlations'."""
    rows = rows[:, rows.amax(0) > rows.amin(0)]
    z = rows - rows.mean(0)
    z = z / z.norm(dim=0).clamp(min=torch.finfo(z.dtype).tiny)
    return z @ z.T if z.shape[0] < z.shape[1] else z.T @ z


def _ratio(correlations: Float[Tensor, "a a"]) -> float:
    return float(correlations.trace().square() / correlations.square().sum())


def _counted(value: float) -> str:
    text = number(value)
    return f"{text} {'direction' if text == '1' else 'directions'}"


def few_classes(site: SiteEvidence, evidence: Evidence) -> float:
    """Return the fraction of standardised variance between two or three classes; 0 with more.

    Classes are the labels, else what the model predicts.
    """
    classes = site.classes
    if classes is None or len(classes.labels) < 2:
        classes = _predicted(site, evidence)
    if classes is None or not 2 <= len(classes.labels) <= 3:
        return 0.0
    within = classes.pooled
    inside = (within.diagonal() if within.ndim == 2 else within).cpu()
    z = (classes.mean - classes.grand_mean).cpu()
    between = classes.weight.cpu() @ z.square()
    total = inside + between
    alive = total > 0
    return float((between[alive] / total[alive]).mean())


def _predicted(site: SiteEvidence, evidence: Evidence) -> ClassMomentsState | None:
    logits = evidence.column("logits", site)
    if logits is None or logits.ndim != 2 or logits.shape[1] > 1024:
        return None
    return ClassMoments("diag").observe(rows_as_float(site.sample), logits.cpu().argmax(1))


def few_outputs(site: SiteEvidence, evidence: Evidence) -> tuple[int, float]:
    """Return the number of model outputs, and how well they span a site's variance.

    The second figure is the share of standardised variance that a linear fit on the answers
    explains, over the share that equally many principal directions explain; 0 with more than two
    numbers. Logits of three classes count as two numbers, since a softmax sees their differences
    alone. If a model has no logits for a row, as one that answers with maps, the last site stands
    for its answers.
    """
    outputs = evidence.column("logits", site)
    last = evidence.sites[-1].sample
    if outputs is None and torch.equal(last.draw, site.sample.draw):
        outputs = rows_as_float(last)
    if outputs is None or outputs.ndim != 2 or outputs.shape[1] > 3:
        return 0, 0.0
    n = min(outputs.shape[1], 2)
    if outputs.shape[1] == 1 and bool(((outputs >= 0) & (outputs <= 1)).all()):
        outputs = outputs.logit(1e-6)  # a sigmoid's probabilities: states are straight before it
    if outputs.shape[1] == 3:
        outputs = (outputs - outputs.mean(1, keepdim=True))[:, :2]
    if not bool(outputs.isfinite().all()):
        return n, 0.0
    z = rows_as_float(site.sample)
    z = z[:, z.amax(0) > z.amin(0)]
    z = (z - z.mean(0)) / z.std(0)
    y = outputs.to(z)
    basis = torch.linalg.svd(y - y.mean(0), full_matrices=False).U
    best = torch.linalg.svdvals(z)[:n].square().sum()
    return n, float((basis.T @ z).square().sum() / best)
