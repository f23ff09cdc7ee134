"""SND085: one value in many entries of an input whose other entries vary."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from sonde.findings.answered import known_answers
from sonde.findings.evidence.inputs.repeated_values import (
    Repeated,
    RepeatedValues,
    find_repeated_values,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence
from sonde.findings.words.text import number, percent, plural, shortened

LEAST = 40


@final
@dataclass(frozen=True)
class SND085(Rule):
    """Fraction of an input's entries that hold one value, although the others hardly repeat.

    Parameters
    ----------
    level : float, default=0.001
        p-value, over all repeated values, from which rows with more such entries have larger
        losses; the finding is then a warning.
    sharp : float, default=20.0
        Ratio of the value's frequency to that of the next frequent value from which a value inside
        the range of the others is a warning by itself.
    """

    level: float = 0.001
    sharp: float = 20.0

    title: ClassVar[str] = "One value in many entries of an input"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("sentinels", "unknown tokens", "weak group")
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "Numbers that were missing arrive as zero, as a mean or as -999, and unknown words as one "
        "code: the model takes them for measurements."
    )
    fix: ClassVar[str] = (
        "Find what writes this value. If it stands for missing entries, fill them as in training."
    )
    how: ClassVar[str] = (
        "Up to 2,048 rows of each input tensor are read, by column or channel and, unless few of "
        "these have such a value, as a whole: one value in 5 to 95 % of the entries, three times "
        "as frequent as the next, among more than 20 other values; runs as of padding, and "
        "entries that a mask hides, are left out. A warning if the value lies further from the "
        "others than their own range, if it lies inside this range and is twenty times as "
        "frequent as the next, or if the loss of a row rises with the number of such entries "
        "(rank correlation, 0.1 % over all such values). Else a note, if it lies inside the "
        "range. Of codes: the code of all masked entries is a warning if it stands in 5 % of the "
        "other entries, several in a row."
    )
    false_positives: ClassVar[str] = (
        "Numbers that are often exactly equal by nature, such as days without rain, for which the "
        "model is less accurate."
    )
    plant: ClassVar[str] = "A third of the entries of a series set to 0."
    twin: ClassVar[str] = "The same series."

    def check(self, evidence: Evidence) -> Check:
        """Report the value with the strongest relation to the loss."""
        repeated = evidence.get(find_repeated_values)
        if not isinstance(repeated, RepeatedValues):
            return self.not_applicable(repeated or "no model was run")
        figure = Figure("repeated_share", 0.0, unit="share", n_rows=len(repeated.order))
        loss = _losses(evidence, repeated)
        limit = self.level / max(1, len(repeated.found))
        judged = [(one, *_rising(one, loss)) for one in repeated.found]
        severe = [j for j in judged if j[2] < limit or self._is_sure(j[0])]
        shown = sorted(severe, key=lambda j: j[2]) or [j for j in judged if j[0].where == "inside"]
        if not shown:
            return self.clear(figure)
        worst, rho, p = shown[0]
        figure = Figure(
            "repeated_share", worst.share, unit="share", null=0.0, n_rows=len(repeated.order), p=p
        )
        rows = torch.argsort(worst.counts, descending=True, stable=True)
        rows = rows[worst.counts[rows] > 0]
        alike = [one for one, _, _ in shown if one.tensor == worst.tensor]
        columns = tuple(dict.fromkeys(one.index for one in alike if one.index >= 0))
        return self.raised_with(
            "warning" if severe else "note",
            sentence(
                _said(worst),
                f"The losses of rows rise with the number of such entries (rank correlation "
                f"{number(rho, 2)})." if p < limit else "",
                f"{plural(len(alike) - 1, 'more column or channel', 'more columns or channels')}."
                if len(alike) > 1 else "",
                f"{plural(len(repeated.order), 'row')}.",
            ),
            figure,
            examples=tuple(repeated.order[rows].tolist()),
            effect=min(1.0, worst.share),
            location=Location(tensors=(worst.tensor,), columns=columns),
        )  # fmt: skip

    def _is_sure(self, one: Repeated) -> bool:
        """Return whether the entries themselves tell that the value stands for something else."""
        is_sharp = one.where == "inside" and one.share >= self.sharp * one.next
        return is_sharp or one.where in ("far", "padding")


def _losses(evidence: Evidence, repeated: RepeatedValues) -> Float[Tensor, "row"]:
    """Return the loss of each row that was read; NaN if it is not known."""
    losses, order = torch.full((len(repeated.order),), torch.nan), shared_rows(evidence).order
    if order is None:
        return losses
    place = {example: i for i, example in enumerate(repeated.order.tolist())}
    examples = order.tolist()
    for i, answer in known_answers(evidence).items():
        loss, at = answer.get("loss"), place.get(examples[i])
        if loss is not None and at is not None:
            losses[at] = float(loss)
    return losses


def _rising(one: Repeated, loss: Float[Tensor, "row"]) -> tuple[float, float]:
    """Return the rank correlation of counts and losses, and its one-sided p-value."""
    is_known = ~loss.isnan()
    counts = one.counts[is_known]
    if len(counts) < LEAST or bool((counts == counts[0]).all()):
        return 0.0, 1.0
    test = spearmanr(counts.numpy(), loss[is_known].numpy(), alternative="greater")
    rho, p = float(test.statistic), float(test.pvalue)  # type: ignore[attr-defined]
    return (rho, p) if rho == rho else (0.0, 1.0)


def _said(one: Repeated) -> str:
    name = repr(shortened(one.tensor, 40))
    what = f"Input {name}" if one.index < 0 else f"Column or channel {one.index} of input {name}"
    tails = {
        "inside": "and lies among its other numbers",
        "far": "and lies further from its other numbers than these from each other",
        "end": "at an end of its range",
    }
    if one.where == "padding":
        return (
            f"{what} is {number(one.value, 6)}, the code of padding, in {percent(one.share)} of "
            "the entries that the mask calls real."
        )
    return (
        f"{what} is {number(one.value, 6)} in {percent(one.share)} of its entries, "
        f"{tails[one.where]}; the next frequent value makes up {percent(one.next)}."
    )
