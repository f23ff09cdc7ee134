"""The class in which a statistic of the inputs is far larger than in the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import mannwhitneyu

from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.words.text import percent, shortened

LEAST = 5
LEVEL = 0.001


@dataclass(frozen=True)
class OneClass:
    """A class, its mean of a statistic, and the mean of all other rows."""

    name: str
    own: float
    rest: float

    @property
    def said(self) -> str:
        """The class and both means as text, in per cent."""
        own, rest = percent(self.own), percent(self.rest)
        return (
            f"Most of these rows are of class {shortened(self.name, 24)!r}: {own} there, "
            f"{rest} in other classes."
        )


def largest_class(
    data: DataEvidence,
    order: Sequence[int] | Int[np.ndarray, "row"],
    values: Float[np.ndarray, "row"],
    ratio: float = 2.0,
) -> OneClass | None:
    """Return the class whose mean is at least ``ratio`` times that of the other rows, or None.

    The rank-sum test must reject equality at 0.001, divided by the number of classes.

    Parameters
    ----------
    data : DataEvidence
    order : sequence of int
        The example of each value.
    values : Float[ndarray, "row"]
    """
    label = data.label.numpy()[np.asarray(list(order), dtype=np.int64)]
    classes = [k for k in np.unique(label[label >= 0]).tolist() if (label == k).sum() >= LEAST]
    differences: list[tuple[float, OneClass]] = []
    for k in classes:
        own, rest = values[label == k], values[(label >= 0) & (label != k)]
        if len(rest) < LEAST or own.mean() < ratio * rest.mean() or own.mean() == 0:
            continue
        test: Any = mannwhitneyu(own, rest, alternative="greater", method="asymptotic")
        if float(test.pvalue) * len(classes) < LEVEL:
            one = OneClass(class_name(data, k), float(own.mean()), float(rest.mean()))
            differences.append((one.own - one.rest, one))
    return max(differences, key=lambda pair: pair[0])[1] if differences else None
