"""SND035: a nuisance variable, such as length or brightness, predicts the label."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.findings.evidence.answers.labels import LabelEvidence, LabelRule
from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at, one_per_group
from sonde.findings.evidence.texts.writing import nuisances_of_rows
from sonde.findings.rule import Breaks, Check, Figure, Finding, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command
from sonde.findings.words.text import number, percent, plural, shortened
from sonde.stats.auroc import auroc
from sonde.stats.auroc_bounds import auroc_bounds

NUISANCES = {
    "length": "the number of tokens",
    "padding": "the amount of padding",
    "size": "the size in bytes",
    "brightness": "the mean brightness",
    "marks": "the number of HTML tags and entities",
    "unknown": "the fraction of unknown tokens",
    "language": "the language (1 if it differs from most texts')",
}
OF_FILES = ("size", "brightness")


@dataclass(frozen=True)
class _Told:
    nuisance: str
    label: int
    auroc: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class SND035(LabelRule):
    """AUROC of length, padding, size, brightness and writing for each class against the rest.

    Parameters
    ----------
    note, warning : float
        Lower bound of the AUROC beyond which the label can be told.
    margin : float, default=0.02
        Least share of the model's margin inside classes that the nuisance explains, for a warning.
    rows : int, default=8
        Least rows whose nuisance speaks against their label, to ask the model about them.
    lost : float, default=0.02
        Largest loss of accuracy on these rows at which the model does not rely on the nuisance.
    level : float, default=0.001
    """

    note: float = 0.6
    warning: float = 0.7
    margin: float = 0.02
    rows: int = 8
    lost: float = 0.02
    level: float = 0.001

    title: ClassVar[str] = "A nuisance variable predicts the label"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shortcut",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A model trained on such data can score well without using the content, and fails where "
        "this property is distributed differently."
    )
    fix: ClassVar[str] = (
        "Balance the labels over this property: sample equally many rows of each label at each "
        "of its values, and train again."
    )
    how: ClassVar[str] = (
        "One-against-rest AUROC of each nuisance variable (length, size, padding, brightness) "
        "for each class, on one sampled row of each group, in the direction in which it is "
        "above one half; lower bound (Newcombe) at a level divided by twice the number of "
        "nuisance variables and classes. A warning becomes a note if the variable explains less "
        "than 2 % of the margin of the model's own answers inside classes, or if the model is as "
        "accurate on rows (8 or more) where the variable points to another class; for size and "
        "brightness also if these answers are not known, since size and brightness depend on "
        "the content of an image. For texts, HTML tags and entities, unknown tokens and the "
        "language (unless the classes are languages) are nuisance variables too. The order of "
        "rows in the file is tested by SND044."
    )
    false_positives: ClassVar[str] = "Classes that differ in length or language by nature."
    plant: ClassVar[str] = "The texts of one class are twice as long."
    twin: ClassVar[str] = "The same lengths, shuffled over rows."

    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Test every nuisance against every class."""
        one = one_per_group(found.group)
        columns = {n: found.shared.column(n) for n in NUISANCES}
        values = {n: c[found.where][one].double() for n, c in columns.items() if c is not None}
        examples = examples_at(evidence, found.where[one].tolist())
        written = nuisances_of_rows(evidence, examples, found.names)
        values |= {n: torch.from_numpy(v) for n, v in written.items()}
        values = {n: v for n, v in values.items() if len(torch.unique(v)) > 1}
        if not values:
            return self.not_applicable("no length, size or brightness is known, or all are equal")
        tail = self.level / (2 * len(values) * len(found.names))
        separations = self._told(values, found.truth[one], len(found.names), tail)
        worst = max(separations, key=lambda t: t.low)
        severe = worst.low > self.warning
        figure = Figure(
            f"auroc_of_{worst.nuisance}",
            worst.auroc,
            worst.low,
            worst.high,
            null=0.5,
            threshold=self.warning if severe else self.note,
            n_rows=len(one),
            n_groups=len(one),
            confidence=1 - 2 * tail,
        )
        table = [vars(t) | {"label": found.names[t.label]} for t in separations]
        if worst.low <= self.note:
            return self.clear(figure, nuisances=table)
        finding = self._finding(evidence, found, worst, figure, severe, values, one)
        return self.raised(finding, nuisances=table)

    def _told(
        self, values: dict[str, Tensor], truth: Int[Tensor, "row"], n_classes: int, tail: float
    ) -> list[_Told]:
        separations = []
        for nuisance, value in values.items():
            for k in range(n_classes):
                rest, own = value[truth != k], value[truth == k]
                if len(own) < 2 or len(rest) < 2:
                    continue
                area = auroc(rest, own).value
                area = max(area, 1 - area)
                separations.append(
                    _Told(nuisance, k, area, *auroc_bounds(area, len(rest), len(own), tail))
                )
        return separations

    def _finding(
        self,
        evidence: Evidence,
        found: LabelEvidence,
        worst: _Told,
        figure: Figure,
        severe: bool,
        values: dict[str, Tensor],
        one: Int[Tensor, "row"],
    ) -> Finding:
        of_class = found.truth[one] == worst.label
        own, rest = (float(values[worst.nuisance][m].median()) for m in (of_class, ~of_class))
        logits = found.shared.column("logits")
        # what a file weighs hangs on what it shows: only a model that leans on it makes it a fault
        tail, used = "", worst.nuisance not in OF_FILES and not _has_no_task(evidence)
        if evidence.data.labels_are_models and logits is not None:
            share = explained_margin(
                logits[found.where][one],
                torch.tensor(found.numbers)[found.truth[one]],
                values[worst.nuisance],
            )
            used = share >= self.margin and not self._holds_against(found, worst, values, one)
            tail = (
                f" Inside classes it explains {percent(share)} of the variance of the model's "
                "margin."
            )
        name = found.names[worst.label]
        sentence = (
            f"{NUISANCES[worst.nuisance].capitalize()} alone separates {shortened(name)!r} from "
            f"the rest with AUROC {number(worst.auroc)} ({number(worst.low)} to "
            f"{number(worst.high)}; 0.5 is chance): median {number(own, 3)} against "
            f"{number(rest, 3)}. {plural(len(one), 'row')}.{tail}"
        )
        return Finding(
            self.code,
            "warning" if severe and used else "note",
            sentence,
            figure,
            classes=(name,),
            effect=2 * worst.auroc - 1,
            next=read_command(found.sites[found.best].key),
        )

    def _holds_against(
        self,
        found: LabelEvidence,
        worst: _Told,
        values: dict[str, Tensor],
        one: Int[Tensor, "row"],
    ) -> bool:
        """Return whether the model is as accurate on rows whose nuisance speaks against the label.

        These are rows beyond the midpoint of the two medians, on the side of the other classes.
        """
        logits = found.shared.column("logits")
        assert logits is not None  # the caller asks for the same
        of_class, value = found.truth[one] == worst.label, values[worst.nuisance]
        own, rest = value[of_class].median(), value[~of_class].median()
        near_own = (value - rest).abs() > (value - own).abs()
        label = torch.tensor(found.numbers)[found.truth[one]]
        right = (logits[found.where][one].argmax(1) == label).double()
        against = near_own != of_class
        if int(against.sum()) < self.rows:
            return False
        return float(right[against].mean()) >= float(right.mean()) - self.lost


def _has_no_task(evidence: Evidence) -> bool:
    """Return whether the model gives no answers and so cannot have learned a shortcut."""
    return evidence.get(read_modules) is not None and "logits" not in evidence.columns


def explained_margin(logits: Tensor, label: Int[Tensor, "row"], nuisance: Tensor) -> float:
    """Return the fraction of the margin's within-class variance that a nuisance explains.

    The margin is the logit of the row's class minus the largest other logit.
    """
    own = logits.double().gather(1, label[:, None])[:, 0]
    margin = own - logits.double().scatter(1, label[:, None], -torch.inf).amax(1)
    a, b = (_within(v.double(), label) for v in (margin, nuisance))
    power = float(a.square().sum() * b.square().sum())
    return float((a * b).sum()) ** 2 / power if power > 0 else 0.0


def _within(values: Tensor, label: Int[Tensor, "row"]) -> Tensor:
    _, member = torch.unique(label, return_inverse=True)
    count = torch.bincount(member).double()
    sums = torch.zeros_like(count).index_add_(0, member, values)
    return values - (sums / count)[member]
