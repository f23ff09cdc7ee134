"""SND031: an earlier site predicts the labels better than the last site."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings.evidence.answers.labels import LabelEvidence, LabelRule, SiteLabels, best_site
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND031(LabelRule):
    """Accuracy of the best site minus the last site's; half of the groups choose the best site."""

    gain: float = 0.03
    errors: float = 3.0
    own_share: float = 0.25

    title: ClassVar[str] = "Labels are decoded best before the last layer"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("neural collapse",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A classifier or an embedding taken from the last layer lacks information that an earlier "
        "layer still had."
    )
    fix: ClassVar[str] = "Train a new head on the layer named, in place of the last one."
    how: ClassVar[str] = (
        "A classifier by class means, in the metric of the OAS-shrunk covariance within "
        "classes, is fitted on three of four folds of the groups and tested on the fourth. The "
        "best site is chosen on half of the sampled groups; its accuracy minus that of the last "
        "site, or of the logits, is measured on the other half, with a standard error over "
        "groups. A warning if the labels are the model's own classes and its own answers lag "
        "behind the best site by as much. If the answers beat the commonest class by less than "
        "a quarter of the best site's margin, the model was not trained on these labels, and "
        "the finding stays a note."
    )
    false_positives: ClassVar[str] = (
        "Common in the middle layers of pretrained models, whose last layers serve another task; "
        "true as well of many nets at random initialisation."
    )
    plant: ClassVar[str] = "The last site loses all but two of the directions between classes."
    twin: ClassVar[str] = "The last site rotated."

    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Compare the accuracy at the best site with that at the last site."""
        if len(evidence.sites) < 2:
            return self.not_applicable("there is one site only")
        chosen = torch.remainder(found.group // 8, 2) == 0
        if bool(chosen.all()) or not bool(chosen.any()):
            return self.withheld("all rows belong to one half of the groups")
        best = best_site([float(s.hit[chosen].mean()) for s in found.sites])
        last = _answering(found)
        figure = self._gain(found, best, found.sites[last].hit, ~chosen)
        if not self._holds(figure):
            return self.clear(figure)
        own = self._own_lags(evidence, found, best, ~chosen)
        ends = found.sites[best], found.sites[last]
        shares = [float(s.hit[~chosen].mean()) for s in ends]
        return self._raised(ends, shares, figure, own)

    def _gain(
        self,
        found: LabelEvidence,
        best: int,
        against: Float[Tensor, "row"],
        rows: Tensor,
    ) -> Figure:
        difference = (found.sites[best].hit - against)[rows]
        group = found.group[rows]
        n_groups = len(torch.unique(group))
        value = float(difference.mean())
        se = group_error(difference / len(difference), group, n_groups)
        return Figure(
            "accuracy_gain",
            value,
            value - 1.96 * se,
            value + 1.96 * se,
            "share",
            null=0.0,
            threshold=self.gain,
            n_rows=len(difference),
            n_groups=n_groups,
        )

    def _holds(self, figure: Figure) -> bool:
        assert figure.low is not None
        se = (figure.value - figure.low) / 1.96
        return figure.value > max(self.gain, self.errors * se)

    def _own_lags(
        self, evidence: Evidence, found: LabelEvidence, best: int, rows: Tensor
    ) -> Figure | None:
        """Return how far the model's answers lag behind the best site, or None if they do not.

        None too if the classes are not its own, or if the answers hardly beat the commonest class.
        """
        logits = found.shared.column("logits")
        if not evidence.data.labels_are_models or logits is None:
            return None
        answer = logits[found.where].argmax(1)
        right = (answer == torch.tensor(found.numbers)[found.truth]).double()
        figure = self._gain(found, best, right, rows)
        majority = float(torch.bincount(found.truth[rows]).max()) / figure.n_rows
        beaten = float(right[rows].mean()) - majority
        knows = beaten >= self.own_share * (float(found.sites[best].hit[rows].mean()) - majority)
        return figure if knows and self._holds(figure) else None

    def _raised(
        self,
        ends: tuple[SiteLabels, SiteLabels],
        shares: list[float],
        figure: Figure,
        own: Figure | None,
    ) -> Check:
        site, last = ends
        tail = "common in middle layers of pretrained models"
        if own is not None:
            tail = f"the model's own answers lag by {number(100 * own.value)} percentage points"
        sentence = (
            f"A simple classifier (class means) classifies {percent(shares[0])} of held-out rows "
            f"correctly at {site.name} and {percent(shares[1])} at the last one, {last.name}: "
            f"{number(100 * figure.value)} percentage points less; {tail}. "
            f"{plural(figure.n_rows, 'row')}."
        )
        return self.raised_with(
            "note" if own is None else "warning",
            sentence,
            figure,
            sites=(site.key, last.key),
            effect=min(1.0, figure.value),
            next=read_command(site.key),
            common=own is None,
        )


def _answering(found: LabelEvidence) -> int:
    """Return the index of the last site, or of the site of the logits.

    A model of several heads answers at one head, which need not be the last to run.
    """
    logits = found.shared.column("logits")
    n = len(found.sites)
    if logits is None:
        return n - 1
    for i in range(n - 1, -1, -1):
        x = found.shared.x(i)
        if x.shape == logits.shape and torch.allclose(x, logits.to(x), rtol=1e-3):
            return i
    return n - 1
