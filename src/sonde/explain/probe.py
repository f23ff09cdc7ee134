"""Accuracy of a linear probe that reads classes from hidden rows, on held-out groups.

It is the probe of a scan, on the folds of a scan: both print the same number for the same rows.

Read its selectivity (``control_task``) beside it: rows of many dimensions tell nearly anything.
The word ``linear_probe`` is a detector of one class; this is the measurement over all classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.instrument import Instrument, NotLabelled, Read
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.explain._probes import LabelledRows, held_out_right
from sonde.stats import ClassMoments, ClassMomentsState, HashSample, HashSampleState
from sonde.stats.folds import FOLDS, folds_of
from sonde.stats.linear_classifiers import directions

ERROR = "over groups held out"


@final
@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """``value`` is the accuracy on held-out groups, ``null`` that of the most frequent class.

    ``weight`` and ``bias`` are those of a fit to all labelled rows.
    """

    weight: Float[Tensor, "class dim"]
    bias: Float[Tensor, "class"]
    labels: Int[Tensor, "class"]

    def classify(self, x: Float[Tensor, "row dim"]) -> Int[Tensor, "row"]:
        """Return the class that the probe predicts for each row."""
        scores = x.to(self.weight) @ self.weight.T + self.bias
        return self.labels[scores.argmax(1).to(self.labels.device)]


@final
@dataclass(frozen=True)
class Probe(Instrument):
    """Accuracy of a linear classifier of all classes, on groups that it was not fitted to.

    A row goes to the class of the largest ``x . S^-1 m_k - m_k . S^-1 m_k / 2 + log p_k``, with the
    means ``m_k`` and frequencies ``p_k`` of the classes and the covariance ``S`` within classes,
    shrunk by OAS. Groups are dealt into folds by hash; each fold is judged by the classifier of all
    rows outside it, so that rows of one document never stand on both sides.

    Range        [0, 1]; higher = the classes can be read off linearly. ``null`` is the accuracy,
                 on the same rows, of the class that is most frequent in the other folds; with
                 classes of equal size it is lower than their share.
    Cost         one pass; state ``8 (dim^2 + classes dim) + 4 m dim`` bytes; result ``folds``
                 solutions of O(dim^3).
    Assumes      labels; at least two groups. A class whose rows all lie in one fold is never
                 predicted there: ``few_rows``.
    Differs      from the paper: class means in place of logistic loss, so that the map is exact
                 under any split of the rows. A scan judges at most 2,048 rows and leaves out
                 classes of fewer than 30: on more rows ``m=2048`` prints its number.

    Parameters
    ----------
    folds : int, default=4
        Parts of the groups; with fewer groups as many as there are.
    m : int, default=10000
        Most rows that accuracy is measured on, whole groups.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> found = Probe().fit(x, label=(x[:, 1] > 0).long())
    >>> found.value > 0.9, found.null < 0.7
    (True, True)

    References
    ----------
    alain2016probes
    """

    folds: int = FOLDS
    m: int = 10_000
    paper: ClassVar[str] = "alain2016probes"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"folds": 2, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, folds=">= 2", m=">= 4")

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Read the moments of each class, and a sample of whole groups of labelled rows."""
        return {"by_class": ClassMoments(), **labelled_sample(self.m)}

    def result(
        self, by_class: ClassMomentsState, sample: HashSampleState, label: HashSampleState
    ) -> ProbeResult:
        """Return the accuracy and the probe.

        Raises
        ------
        InputError
            If there is one class alone, a class for each row, one group, or no class in two folds.
        """
        rows = LabelledRows.of("Probe", _in_whole_groups(sample), _in_whole_groups(label))
        right, usual = held_out_right(rows, rows.label, self.folds, by_class)
        weight, bias = directions(by_class)
        odds = (by_class.weight / by_class.weight.sum()).log()
        return ProbeResult(
            value=float(right.double().mean()),
            se=rows.shares_error(right.double()),
            null=float(usual.double().mean()),
            n=len(right),
            range=(0.0, 1.0),
            direction="higher",
            flags=row_flags(rows, sample, self.folds),
            conventions={"covariance": "within classes, OAS", "se": ERROR},
            weight=weight.T,
            bias=bias + odds - by_class.grand_mean @ weight,
            labels=by_class.labels,
        )


def _in_whole_groups(sample: HashSampleState) -> HashSampleState:
    """Return a sample without the rows of a cut group, which would be learned from and judged."""
    if sample.is_everything or len(torch.unique(sample.group_draw)) == len(sample.draw):
        return sample
    kept = sample.whole_groups()
    columns = (sample.rows, sample.draw, sample.group, sample.group_draw)
    return HashSampleState(sample.n, *(column[kept] for column in columns))


def labelled_sample(m: int) -> dict[str, Statistic[Any] | Read]:
    """Return the statistics that sample whole groups of labelled rows, and their labels."""
    return {
        "sample": Read(HashSample(m, groups=True), NotLabelled(-1)),
        "label": Read(HashSample(m, "label", groups=True), NotLabelled(-1)),
    }


def row_flags(
    rows: LabelledRows, sample: HashSampleState, folds: int | None = None
) -> tuple[str, ...]:
    """Return the flags of a sample whose folds, or groups, are held out in turn.

    Raises
    ------
    InputError
        If no class has rows in two folds, or groups.
    """
    alone = rows.of_one_part(rows.group if folds is None else folds_of(rows.group_hash, folds))
    is_few = len(rows.x) <= rows.x.shape[1] or bool(alone.any())
    return (
        *(("dead",) if bool((rows.x == rows.x[0]).all()) else ()),
        *(("few_rows",) if is_few else ()),
        *(() if sample.is_everything else ("sampled",)),
    )
