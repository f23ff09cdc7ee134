"""Detect wrong answers by projecting their states on directions from contrasting prompts.

Each feature (reliance on the context, comprehension of it, honesty) comes as pairs of prompts in
front of the same answer. Rows are the states that predict the answer, as the reducer
``step_sources`` makes them. With many labels ``LinearProbe`` needs no prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Detector, Read, Where
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Span, Statistic
from sonde.detect._metric import check_fitted_width
from sonde.detect._pair_sample import joined, smallest_pairs
from sonde.detect._probe import Labelled
from sonde.metrics import auroc, prediction_rejection
from sonde.stats import HashSample, HashSampleState
from sonde.stats.calibrated import aligned

ROUNDING = 1e-14
MOST_STEPS = 100


@dataclass(frozen=True)
class ContrastSampleState(State):
    """Rows of the sampled answers, sorted by hash of ``pair``, then side; ``n`` were seen."""

    n: int
    rows: Float[Tensor, "entry dim"]
    pair: Int[Tensor, "entry"]
    side: Int[Tensor, "entry"]
    draw: Int[Tensor, "entry"]

    def differences(self, first: int, second: int) -> Float[Tensor, "answer dim"]:
        """Return rows of side ``first`` minus rows of side ``second``, for answers with both."""
        a, b = (torch.nonzero(self.side == side).flatten() for side in (first, second))
        a = a[torch.isin(self.pair[a], self.pair[b])]
        b = b[torch.isin(self.pair[b], self.pair[a])]
        # entries of both sides are sorted by the same hash
        rows = self.rows.double()
        return rows[a.to(rows.device)] - rows[b.to(rows.device)]


@final
@dataclass(frozen=True)
class ContrastSample(Statistic[ContrastSampleState]):
    """Rows of the ``m`` answers with the smallest hashes, from all sides of each answer.

    The sample does not depend on how rows are divided or ordered. The rows of an answer share one
    value of ``pair`` and may arrive in different batches or shards. Rows of a negative side are
    left out. If a side has several rows, the row with the smallest sampling key is kept.

    Parameters
    ----------
    m : int
        Most answers that are kept.
    sides : int
        Sides are below this number.
    """

    m: int
    sides: int

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        pair: Int[Tensor, "row"],
        side: Int[Tensor, "row"],
        draw: Int[Tensor, "row"],
    ) -> ContrastSampleState:
        """Return the sample of these rows."""
        pair, side, draw = pair.cpu(), side.cpu(), draw.cpu()
        if int(side.max()) >= self.sides:
            raise InputError(
                f"ContrastSample: expected sides below {self.sides}, two for each feature, got "
                f"{int(side.max())}. Number the prompts of feature f as 2 f and 2 f + 1."
            )
        keep = torch.nonzero(side >= 0).flatten()
        return self._smallest(len(keep), x[keep.to(x.device)], pair[keep], side[keep], draw[keep])

    def merge(self, a: ContrastSampleState, b: ContrastSampleState) -> ContrastSampleState:
        """Return the ``m`` answers with the smallest hashes among both samples."""
        return self._smallest(a.n + b.n, *joined(a, b))

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ``m`` answers with float32 rows of every side."""
        return self.sides * self.m * (4 * dims[0] + 24)

    def _smallest(
        self, n: int, rows: Tensor, pair: Tensor, side: Tensor, draw: Tensor
    ) -> ContrastSampleState:
        keep = smallest_pairs(self.m, pair, side, draw)
        kept = rows[keep.to(rows.device)].clone()
        return ContrastSampleState(n, kept, pair[keep], side[keep], draw[keep])


@dataclass(frozen=True)
class Directions:
    """A direction for each feature, and its principal axis's cosine with the mean gap."""

    direction: list[Float[Tensor, "dim"]]
    cosine: Float[Tensor, "feature"]
    pairs: Int[Tensor, "feature"]


def directions_of(contrasts: ContrastSampleState, features: int, which: str) -> Directions:
    """Return a unit direction for each feature at one site; zeros without variation."""
    chosen, cosines, counts = [], [], []
    for f in range(features):
        gap = contrasts.differences(2 * f, 2 * f + 1)
        if len(gap) < 2:
            raise InputError(
                f"FeatureGaps: expected at least 2 answers with sides {2 * f} and {2 * f + 1}, "
                f"the two prompts of feature {f}, got {len(gap)}. Give both rows the same value "
                "of 'pair', or pass the number of features (features=)."
            )
        mean = gap.mean(0)
        principal = _principal(gap - mean, 1e-9 * float(gap.norm()))
        length = mean.norm()
        middle = mean / length if float(length) > 0 else mean
        cosines.append((principal @ middle).abs())
        chosen.append(principal if which == "pc" else middle)
        counts.append(len(gap))
    return Directions(chosen, torch.stack(cosines), torch.tensor(counts))


def _principal(centred: Float[Tensor, "row dim"], floor: float) -> Float[Tensor, "dim"]:
    """Return the first principal axis of centred rows; zeros if they vary less than a floor."""
    n, dim = centred.shape
    gram = centred @ centred.T if n < dim else centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    axis = centred.T @ vectors[:, -1] if n < dim else vectors[:, -1]
    varies = float(values[-1].clamp(min=0).sqrt()) > floor
    return axis / axis.norm() if varies else torch.zeros_like(axis)


MOST_SKIPPED = 7


@final
@dataclass(frozen=True)
class UsualAnswers(Where):
    """Selects answers without a contrasting prompt that are not labelled as wrong.

    Parameters
    ----------
    positive : int
        The label of wrong answers.
    """

    positive: int

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep rows of other labels with a negative side; without sides keep all rows."""
        right = batch.column("label", key) != self.positive
        return right if batch.side is None else right & (batch.column("side", key) < 0)


@final
@dataclass(frozen=True)
class Gap:
    """One feature: its layer, direction and scale of projections."""

    layer: int
    direction: Float[Tensor, "dim"]
    centre: float
    spread: float


@final
@dataclass(frozen=True, kw_only=True)
class FeatureGapsScorer(Scorer):
    """Probability that an answer is wrong, from its projections on feature directions.

    ``cosine`` compares, for each layer and feature, the principal direction of the pairs'
    differences with their mean. ``value`` is the prediction rejection ratio of the scores on the
    rows that chose the layers.
    """

    gaps: tuple[Gap, ...]
    weight: Float[Tensor, "feature"]
    bias: float
    n_sites: int
    cosine: Float[Tensor, "layer feature"]

    def score(self, x: Sequence[Float[Tensor, "row _dim"]]) -> Float[Tensor, "row"]:
        """Return the probability that each answer is wrong; ``x`` holds its rows by site."""
        if len(x) != self.n_sites:
            raise ShapeError(
                f"FeatureGaps.score: expected rows at {self.n_sites} sites (as fitted), got "
                f"{len(x)}."
            )
        odds = torch.full((len(x[0]),), self.bias, dtype=torch.float64, device=x[0].device)
        for gap, weight in zip(self.gaps, self.weight.tolist(), strict=True):
            rows = x[gap.layer]
            check_fitted_width("FeatureGaps", rows, len(gap.direction))
            along = (rows.double() @ gap.direction.to(rows.device) - gap.centre) / gap.spread
            odds = odds + weight * along.to(odds)
        used = [x[gap.layer] for gap in self.gaps]
        return infinite_where_nonfinite(torch.sigmoid(odds), *used)


@final
@dataclass(frozen=True)
class FeatureGaps(Detector):
    """Probability that an answer is wrong, from directions of a few contrasting prompts.

    The same answer is read after two prompts that differ in one feature, for instance "use the
    context" and "ignore it". At each layer the principal direction of the differences represents
    the feature; an answer's projection on this direction measures how much of the feature the
    answer has. Labelled answers choose sign and layer of each feature, by the prediction rejection
    ratio, and weigh the features by logistic regression.

    Range        [0, 1]; higher = more likely wrong.
    Cost         one pass; state 4 m (2 features + 1) dim bytes per site; result O(sites features
                 m^2 dim); O(features dim) per answer.
    Assumes      columns ``pair`` (the answer) and ``side``: ``2 f`` after the positive and
                 ``2 f + 1`` after the negative prompt of feature ``f``, negative after the plain
                 one. Labels of plain readings: ``positive`` is wrong, others right; leave those of
                 the contrasts empty. Without plain readings all labelled rows are taken.
    Differs      from the paper's code: one half of the labelled rows chooses the layers and the
                 other weighs the features; a quarter of the sites, at most 7, is skipped, not
                 always 7; the mean difference is not subtracted from states, which moves all
                 scores alike.

    Parameters
    ----------
    direction : {"pc", "mean"}, default="pc"
        First principal component of the centred differences, or their mean, which centring removes.
    features : int, default=3
        Pairs of prompts.
    skip : int or "auto", default="auto"
        First sites that are never chosen.
    l2 : float, default=1.0
        Penalty ``l2 / 2 |w|^2`` on the weights of the standardised features.
    positive : int, default=1
        The label of wrong answers.
    m : int, default=512
        Most answers with contrasts, and most labelled rows, in the samples.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> wrong = torch.arange(200) % 2
    >>> plain = torch.randn(200, 4, generator=rng) + 2 * wrong[:, None] * torch.eye(4)[0]
    >>> gap = torch.randn(60, 1, generator=rng) * torch.eye(4)[0]
    >>> x = torch.cat([plain, gap, torch.zeros(60, 4)])
    >>> side = [-1] * 200 + [0] * 60 + [1] * 60
    >>> pair = [*range(200), *range(60), *range(60)]
    >>> label = [*wrong.tolist(), *[-1] * 120]
    >>> scorer = FeatureGaps(features=1).fit(x, label, pair=pair, side=side)
    >>> (scorer.score([torch.tensor([[3.0, 0, 0, 0], [-1.0, 0, 0, 0]])]) > 0.5).tolist()
    [True, False]

    References
    ----------
    bakman2025featuregaps
    """

    direction: Literal["pc", "mean"] = "pc"
    features: int = 3
    skip: int | Literal["auto"] = "auto"
    l2: float = 1.0
    positive: int = 1
    m: int = 512
    span: ClassVar[Span] = "all"
    least_sites: ClassVar[int] = 1
    paper: ClassVar[str] = "bakman2025featuregaps"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 1, "m": 32},
        {"features": 1, "direction": "mean", "skip": 1, "m": 32},
    )

    def __post_init__(self) -> None:
        check_ranges(self, features=">= 1", m=">= 1", l2="> 0")
        if self.skip != "auto" and (isinstance(self.skip, str) or self.skip < 0):
            raise InputError(f"FeatureGaps: expected skip 'auto' or at least 0, got {self.skip!r}.")

    @property
    def usual(self) -> Where:
        """Select plain readings of answers not labelled as wrong."""
        return UsualAnswers(self.positive)

    def reading(self) -> dict[str, Any]:
        """Return the reading of the states that predict each answer."""
        return {"reducer": "step_sources"}

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Return the requests for samples of contrasts and of labelled rows."""
        labelled = {
            name: Read(HashSample(self.m, column), Labelled())
            for name, column in (("rows", "x"), ("labels", "label"), ("sides", "side"))
        }
        return {"contrasts": ContrastSample(self.m, 2 * self.features), **labelled}

    def result(
        self,
        contrasts: tuple[ContrastSampleState, ...],
        rows: tuple[HashSampleState, ...],
        labels: tuple[HashSampleState, ...],
        sides: tuple[HashSampleState, ...],
    ) -> FeatureGapsScorer:
        """Compute directions, select features' layers and signs, and fit the features' weights."""
        x, wrong, n_left = self._answers(rows, labels, sides)
        first = torch.arange(len(wrong)) % 2 == 0  # in order of draw: random halves
        _check_kinds(wrong[first], wrong[~first])
        skip = self._skipped(len(x))
        directions = [directions_of(c, self.features, self.direction) for c in contrasts]
        gaps = tuple(
            _gap(f, [d.direction[f] for d in directions], x, wrong, first, skip)
            for f in range(self.features)
        )
        z = torch.stack([(x[g.layer] @ g.direction - g.centre) / g.spread for g in gaps], 1)
        weight, bias = logistic(z[~first], wrong[~first], self.l2)
        order = z @ weight  # the bias changes no order
        dead = any(float(g.direction.norm()) == 0.0 for g in gaps)
        return FeatureGapsScorer(
            value=_rejection(order[first], wrong[first]),
            n=len(wrong),
            range=(0.0, 1.0),
            flags=(*(["dead"] if dead else []), *(["sampled"] if n_left else [])),
            conventions={
                "value": "prediction rejection ratio on the rows that chose the layers",
                "direction": self.direction,
                "layers": [g.layer for g in gaps],
                "skipped": skip,
                "pairs": [int(n) for n in directions[0].pairs],
                "positive": self.positive,
                "se": "not given for a scorer: calibrate its scores",
            },
            gaps=gaps,
            weight=weight,
            bias=bias,
            n_sites=len(x),
            cosine=torch.stack([d.cosine for d in directions]),
        )

    def _answers(
        self,
        rows: tuple[HashSampleState, ...],
        labels: tuple[HashSampleState, ...],
        sides: tuple[HashSampleState, ...],
    ) -> tuple[list[Float[Tensor, "row _dim"]], Bool[Tensor, "row"], int]:
        """Return each site's plain rows, a mask of wrong ones, and the number not sampled."""
        shared = aligned(rows, rows)
        (label,), (side,) = aligned(labels[:1], labels), aligned(sides[:1], sides)
        plain = side.rows < 0
        keep = plain if bool(plain.any()) else torch.ones_like(plain)
        x = [s.rows[keep.to(s.rows.device)].double() for s in shared]
        return x, label.rows[keep] == self.positive, rows[0].n - len(rows[0].draw)

    def _skipped(self, n_sites: int) -> int:
        skip = min(MOST_SKIPPED, n_sites // 4) if isinstance(self.skip, str) else self.skip
        if skip >= n_sites:
            raise InputError(
                f"FeatureGaps: expected skip below {n_sites}, the number of sites, got {skip}. "
                "Read more sites or skip fewer."
            )
        return skip


def _check_kinds(first: Bool[Tensor, "first"], second: Bool[Tensor, "second"]) -> None:
    counts = [int(k) for part in (first, second) for k in (part.sum(), (~part).sum())]
    if min(counts) < 1:
        raise InputError(
            "FeatureGaps: expected labelled answers, wrong and correct, in both random halves, "
            f"got {counts[0]} wrong and {counts[1]} correct in one half and {counts[2]} and "
            f"{counts[3]} in the other. Label more answers."
        )


def _gap(
    feature: int,
    directions: Sequence[Float[Tensor, "_dim"]],
    x: Sequence[Float[Tensor, "row _dim"]],
    wrong: Bool[Tensor, "row"],
    first: Bool[Tensor, "row"],
    skip: int,
) -> Gap:
    """Return the layer, sign and scale at which a feature best detects wrong answers."""
    best: tuple[float, Gap] | None = None
    for layer in range(skip, len(x)):
        along = x[layer] @ directions[layer]
        sign = 1.0 if auroc(along[first], wrong[first], resamples=0).value >= 0.5 else -1.0
        ratio = _rejection(sign * along[first], wrong[first])
        if best is None or ratio > best[0]:
            centre, spread = sign * float(along[~first].mean()), float(along[~first].std())
            scale = spread if spread > 0 else 1.0
            best = ratio, Gap(layer, sign * directions[layer], centre, scale)
    assert best is not None  # skip is below the number of sites
    return best[1]


def _rejection(scores: Float[Tensor, "row"], wrong: Bool[Tensor, "row"]) -> float:
    return float(prediction_rejection(scores, (~wrong).double(), resamples=0).value)


def logistic(
    z: Float[Tensor, "row feature"], wrong: Bool[Tensor, "row"], l2: float
) -> tuple[Float[Tensor, "feature"], float]:
    """Return the weights and the bias of a logistic regression, by Newton's method.

    The sum of losses and ``l2 / 2 |w|^2`` has one minimum; the bias is not penalised.
    """
    design = torch.cat([z.double(), torch.ones(len(z), 1, dtype=torch.float64)], 1)
    target = wrong.double()
    penalty = torch.full((design.shape[1],), l2, dtype=torch.float64)
    penalty[-1] = 0.0
    share = target.mean()
    point = torch.zeros_like(penalty)
    point[-1] = torch.logit(share)

    def loss(p: Tensor) -> Tensor:
        odds = design @ p
        return torch.nn.functional.softplus(odds).sum() - target @ odds + penalty @ p.square() / 2

    for _ in range(MOST_STEPS):
        chance = torch.sigmoid(design @ point)
        slope = design.T @ (chance - target) + penalty * point
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + torch.diag(penalty)
        bend += ROUNDING * bend.diagonal().max() * torch.eye(len(bend), dtype=torch.float64)
        step = torch.linalg.solve(bend, slope)  # not lstsq: its pivots make other bits each time
        size = 1.0
        while size > 1e-6 and float(loss(point - size * step)) > float(loss(point)):
            size /= 2
        point = point - size * step
        if float(step.abs().max()) < 1e-10:
            break
    return point[:-1], float(point[-1])
