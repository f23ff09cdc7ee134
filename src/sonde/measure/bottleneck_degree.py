"""Information in a layer about its input that the class does not determine.

Every figure depends on the noise that is assumed in the rows: compare layers only at the same
``noise``. From the moments of classes, the relative form says no more than the explained variance
of ``class_separability``; ``"mc"`` uses the rest of the distribution too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument, Read
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.engine.tails import has_heavy_tails
from sonde.measure._flags import precision_flags, relative_spread
from sonde.measure._noisy_rows import information_bounds
from sonde.measure._reads import labelled_sample, unlabelled
from sonde.stats import ClassMoments, ClassMomentsState, HashSampleState
from sonde.stats.sampled_rows import SHUFFLES, SampledRows


@final
@dataclass(frozen=True, kw_only=True)
class BottleneckDegreeResult(Result):
    """Upper bound on the information in nats.

    ``lower`` is a lower bound (NaN if only moments were read); ``noise_variance`` is the variance
    of the noise in each unit, in squared units of the rows.
    """

    direction: Direction = "lower"
    unit: str = "nats"
    lower: float
    noise_variance: float


@final
@dataclass(frozen=True)
class BottleneckDegree(Instrument):
    """Information of noisy rows about their inputs, given the class.

    Bounds ``I(input; row + noise | class)`` with Gaussian noise of variance ``s2`` in every unit:
    rows of a class that lie together are a narrow bottleneck. ``jensen`` is ``tr S_W / (n s2)``
    with the scatter ``S_W`` within classes. ``mc`` is tighter: the mean over rows of ``-ln e``,
    where ``e`` is the mean of ``exp(-d^2 / (2 s2))`` over the rows of the class. The lower bound
    of ``mc`` has ``8 s2`` in place of ``2 s2``.

    Range        [0, inf), nats; mc at most the mean of ``ln`` of the class sizes (flag
                 ``saturated`` above nine tenths); lower = more is forgotten. Invariant to
                 rotation, shifts and, with relative noise, isotropic scale.
    Cost         one pass; state 16 classes dim bytes, result O(classes dim); mc: state ``m`` rows,
                 result O(m^2 dim).
    Assumes      rows with label -1 are left out; several rows in a class (flag ``few_rows``).
    Differs      from the paper: noise relative to the layer's variance, so that scale plays no
                 part. The null is that of labels without meaning.

    Parameters
    ----------
    estimator : {"jensen", "mc"}, default="jensen"
        The bound from the moments of classes, or the one from a sample of rows.
    noise : float, default=0.1
        Variance of the noise in each unit, as a share of the total variance of the rows.
    relative : bool, default=True
        False: ``noise`` is the variance itself.
    m : int, default=2048
        Rows of the sample of ``mc``.

    Examples
    --------
    >>> round(bottleneck_degree([[-1.0], [1.0]], [0, 0], noise=1.0, relative=False).value, 6)
    1.0

    References
    ----------
    kawaguchi2023bottleneck
    """

    estimator: Literal["jensen", "mc"] = "jensen"
    noise: float = 0.1
    relative: bool = True
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "kawaguchi2023bottleneck"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"estimator": "mc", "m": 64},
        {"estimator": "mc", "noise": 2.0, "relative": False},
    )

    def __post_init__(self) -> None:
        check_ranges(self, estimator=("jensen", "mc"), noise="(0, inf)")

    def reads(self) -> Mapping[str, Statistic[Any] | Read]:
        """Return the request for each class's moments, or a sample of labelled rows."""
        if self.estimator == "jensen":
            return {"classes": ClassMoments("diag")}
        return labelled_sample(self.m)

    def result(
        self,
        classes: ClassMomentsState | None = None,
        rows: HashSampleState | None = None,
        labels: HashSampleState | None = None,
        every: HashSampleState | None = None,
    ) -> BottleneckDegreeResult:
        """Bound the information from the moments, or from the sampled rows."""
        if classes is not None:
            return self._of_moments(classes)
        assert rows is not None  # guaranteed by reads
        assert labels is not None
        sample = SampledRows.of((rows, replace(labels, rows=labels.rows[:, None])))
        return self._of_sample(sample, rows.rows.dtype, unlabelled(rows, every))

    def _of_moments(self, classes: ClassMomentsState) -> BottleneckDegreeResult:
        n, count = classes.n_labelled, len(classes.labels)
        if count == 0:
            raise InputError(
                "BottleneckDegree: expected rows with a label, got none. "
                "Pass labels, or check the label column."
            )
        within, weight = classes.pooled.sum(), classes.weight
        between = (weight[:, None] * (classes.mean - classes.grand_mean).square()).sum()
        total = (within + between) / weight.sum()
        flags = _flags(classes.grand_mean, total, torch.float32)
        flags += ["few_rows"] if n < 2 * count else []
        flags += ["unlabelled"] if classes.unlabelled is not None else []
        dead = "dead" in flags
        variance = self.noise * (total if self.relative else torch.ones_like(total))
        null = total * (n - count) / max(n - 1, 1) / variance
        return self._answer(
            math.nan if dead else within / weight.sum() / variance,
            math.nan if dead else float(null.detach()),
            n,
            flags,
            {"null": "closed form"},
            noise_variance=float(variance.detach()),
        )

    def _of_sample(
        self, rows: SampledRows, dtype: torch.dtype, missing: tuple[str, ...]
    ) -> BottleneckDegreeResult:
        x = rows.rows[0]
        mean, gap = _centred(x)
        total = gap.mean() if len(x) else gap.sum()
        size = torch.unique(rows.rows[1], return_counts=True)[1].double()
        flags = [*rows.flags, *missing, *_flags(mean, total, dtype)]
        flags += ["few_rows"] if len(rows) < 2 * len(size) else []
        variance = self._variance(x)
        if "dead" in flags:
            return self._answer(
                math.nan, math.nan, len(rows), flags, {"se": "no value"}, noise_variance=variance
            )
        upper, lower = _bounds(rows, variance)
        most = float((size * size.log()).sum()) / len(rows)
        flags += ["saturated"] if float(upper) > 0.9 * most else []
        null = sum(float(_bounds(other, variance)[0]) for other in rows.shuffled()) / SHUFFLES
        se, how = rows.standard_error(lambda half: _bounds(half, self._variance(half.rows[0]))[0])
        heavy = self.relative and has_heavy_tails(gap.cpu(), rows.group, [x])
        flags += ["heavy_tails"] if heavy else []
        conventions = {"se": how, "null": f"{SHUFFLES} shuffles of labels among groups"}
        return self._answer(
            float(upper),
            null,
            len(rows),
            flags,
            conventions,
            se,
            float(lower),
            noise_variance=variance,
        )

    def _variance(self, x: Float[Tensor, "row dim"]) -> float:
        """Return the variance of the noise in each unit, for rows that may be a part of all."""
        return self.noise * (float(_centred(x)[1].mean()) if self.relative and len(x) else 1.0)

    def _answer(
        self,
        value: Tensor | float,
        null: float,
        n: int,
        flags: list[str],
        told: dict[str, Any],
        se: Tensor | None = None,
        lower: float = math.nan,
        *,
        noise_variance: float,
    ) -> BottleneckDegreeResult:
        share = "of the total variance" if self.relative else "absolute"
        return BottleneckDegreeResult(
            value=value,
            se=se,
            null=null,
            n=n,
            range=(0.0, math.inf),
            flags=tuple(flags),
            conventions={"estimator": self.estimator, "noise": f"{self.noise:g}, {share}", **told},
            lower=lower,
            noise_variance=noise_variance,
        )


def _flags(mean: Float[Tensor, "dim"], total: Float[Tensor, ""], dtype: torch.dtype) -> list[str]:
    if not bool(total.detach() > 0):
        return ["dead"]
    return precision_flags(relative_spread(mean, total[None]), dtype)


def _centred(x: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "dim"], Float[Tensor, "row"]]:
    """Return the mean row, and the squared distance of each row from it."""
    mean = x.sum(0) / max(len(x), 1)
    return mean, (x - mean).square().sum(1)


def _bounds(rows: SampledRows, variance: float) -> Float[Tensor, "2"]:
    x, label = rows.rows
    return information_bounds(x, label, variance)


bottleneck_degree = as_function(BottleneckDegree, "label")
