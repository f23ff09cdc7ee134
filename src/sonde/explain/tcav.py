"""Sensitivity of a model's answer along a concept's direction, against random concepts.

For states with gradients of one answer (``sonde.read(..., objective=...)``). Where the concept is a
label of the same rows and only its presence is asked, ``probe`` needs no gradient.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.core.wording import plural
from sonde.stats import HashSample, HashSampleState

ANSWERED, RANDOM = 0, -1
NEWTON = 12
SEPARATED, LEVEL = 0.6, 0.05
LEAST, SETS = 100, 20
"""Fewest random concepts for a reliable ``p``, and sets that each is compared with."""


@final
@dataclass(frozen=True, kw_only=True)
class TcavResult(Result):
    """``value`` is, for each concept, the fraction of rows whose answer it raises.

    ``sensitivity`` is the mean derivative along the concept's unit direction, ``null_sensitivity``
    the mean and ``null_spread`` the standard deviation of random concepts' derivatives; ``p`` the
    two-sided probability of a random concept as far away, times the number of tests; ``accuracy``
    how well a direction tells the concept's rows from random rows that it was not fitted to.
    """

    concepts: Int[Tensor, "concept"]
    direction_of: Float[Tensor, "concept dim"]
    sensitivity: Float[Tensor, "concept"]
    null_sensitivity: Float[Tensor, "concept"]
    null_spread: Float[Tensor, "concept"]
    p: Float[Tensor, "concept"]
    accuracy: Float[Tensor, "concept"]

    @property
    def significant(self) -> Bool[Tensor, "concept"]:
        """Concepts with ``p`` below 5 % whose direction separates at least 60 % of rows."""
        return (self.p < LEVEL) & (self.accuracy >= SEPARATED)


@final
@dataclass(frozen=True)
class Tcav(Instrument):
    """Fraction of rows whose answer rises along a concept's direction, against random concepts.

    The direction is the unit normal of a separator of the concept's rows from a random set, the
    sensitivity of a row ``grad . v``. Both are averaged over 20 random sets. ``n_random`` random
    sets in place of the concept give the null.

    Labels say what a row is: 0 = a row whose answer is asked about, 1, 2, .. = a row of this
    concept, -1 = a random row; without random rows, those of all other labels serve.

    Range        [0, 1]; 1 = raises the answer on every row, 0 = lowers it, .5 = neither.
    Cost         one pass; state ``8 m dim`` bytes; ``20 n_random`` separators of small sets.
    Assumes      rows of concepts and random rows from the same site; gradients of one answer.
    Differs      from the paper: the test compares mean sensitivities, with the concept as one new
                 draw among random concepts. A t-test over random sets, which share the rows of the
                 concept, calls chance concepts significant far more often than its level.

    Parameters
    ----------
    separator : {"logistic", "signal"}, default="logistic"
        Logistic with ``l2``, or the difference of means.
    l2 : float, default=1.0
        Penalty on the sum of the log losses, of rows scaled to a mean variance of 1.
    n_random : int, default=100
        Random concepts, at least 100: with fewer, ``p`` depends on which rows they hold.
    sites : int, default=1
        Sites that are tested together, for the correction of ``p``.
    m : int, default=10000
        Most rows.
    seed : int, default=0
        Seed of the random sets.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> x, label = torch.randn(400, 40, generator=draw), torch.arange(400) % 4 - 1
    >>> x[label > 0, 0] += 3
    >>> grad = torch.eye(40)[:1].repeat(400, 1)
    >>> found = Tcav("signal").fit(x, label=label.clamp(max=1), grad=grad)
    >>> found.value, found.significant.tolist()
    (1.0, [True])

    References
    ----------
    kim2018tcav
    """

    separator: Literal["logistic", "signal"] = "logistic"
    l2: float = 1.0
    n_random: int = LEAST
    sites: int = 1
    m: int = 10_000
    seed: int = 0
    paper: ClassVar[str] = "kim2018tcav"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"separator": "signal", "n_random": 120})

    def __post_init__(self) -> None:
        is_known = self.separator in ("logistic", "signal")
        if (
            not is_known
            or self.n_random < LEAST
            or not self.l2 > 0
            or self.sites < 1
            or self.m < 30
        ):
            raise InputError(
                f"Tcav: expected a separator of logistic or signal, {LEAST} random concepts or "
                f"more, l2 above 0, a site and 30 rows or more, got {self}."
            )

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read a sample of rows, their gradients and their labels."""
        return {name: HashSample(self.m, name) for name in ("x", "grad", "label")}

    def result(
        self, x: HashSampleState, grad: HashSampleState, label: HashSampleState
    ) -> TcavResult:
        """Return the score and the test of each concept.

        Raises
        ------
        InputError
            If a concept has fewer than 10 rows, there are fewer than 20 random rows, or there is no
            concept or no row whose answer is asked about.
        """
        kind, rows = label.rows.to(x.rows.device), x.rows.double()
        slope = grad.rows.double()[kind == ANSWERED]
        concepts = torch.unique(kind[kind > ANSWERED])
        pools = [rows[kind == RANDOM] if bool((kind == RANDOM).any()) else rows[kind != c]
                 for c in concepts]  # fmt: skip
        self._check(kind, concepts, len(slope), min(map(len, pools), default=0))
        parts = [
            self._concept(rows[kind == c], pool, slope, len(concepts))
            for c, pool in zip(concepts, pools, strict=True)
        ]
        columns = {name: torch.stack([f[name] for f in parts]) for name in parts[0]}
        n = len(slope)
        return TcavResult(
            value=columns["value"],
            null=0.5,
            n=n,
            range=(0.0, 1.0),
            direction="higher",
            flags=(*(() if x.is_everything else ("sampled",)), *_dead(slope, columns["value"])),
            conventions={
                "tests": len(concepts) * self.sites,
                "level": LEVEL,
                "se": "p compares with random concepts",
            },
            concepts=concepts,
            direction_of=columns["direction_of"],
            sensitivity=columns["sensitivity"],
            null_sensitivity=columns["null_sensitivity"],
            null_spread=columns["null_spread"],
            p=columns["p"],
            accuracy=columns["accuracy"],
        )

    def _check(self, kind: Tensor, concepts: Tensor, n_asked: int, n_random: int) -> None:
        sizes = [int((kind == c).sum()) for c in concepts]
        if not sizes or not n_asked:
            raise InputError(
                "Tcav: expected rows of concepts (label 1, 2, ..) and rows to explain (label "
                f"0), got {plural(len(sizes), 'concept')} and {plural(n_asked, 'row')} to explain."
            )
        if min(sizes) < 10 or n_random < 20:
            raise InputError(
                "Tcav: expected 10 rows of each concept and 20 random rows (label -1) or "
                f"more, got {min(sizes)} and {n_random}. Give larger sets."
            )

    def _concept(self, own: Tensor, pool: Tensor, slope: Tensor, n_concepts: int) -> dict[str, Any]:
        """Return the statistics of one concept and of random concepts of equal size."""
        draw = torch.Generator().manual_seed(self.seed)
        size = min(len(own), len(pool) // 2)
        own = own[torch.randperm(len(own), generator=draw)[:size]]
        order = [torch.randperm(len(pool), generator=draw) for _ in range(self.n_random)]
        sets = torch.stack([pool[o[:size]] for o in order])
        along = self._directions(own.expand(SETS, -1, -1), sets[:SETS])
        # A random concept has no row in common with the sets that it is compared with.
        by_chance = torch.stack(
            [
                self._directions(chance.expand(len(rest), -1, -1), rest)
                for chance, o in zip(sets, order, strict=True)
                for rest in [_sets(pool[o[size:]], size, SETS, draw)]
            ]
        )
        mean = slope.mean(0)
        null = (by_chance @ mean).mean(1)
        sensitivity = (along @ mean).mean()
        spread = null.std()
        # one new draw against R: the variance of its distance from their mean is s^2 (1 + 1 / R)
        distance = (sensitivity - null.mean()).abs() / (spread * (1 + 1 / len(null)) ** 0.5)
        p = 2 * float(student.sf(float(distance), len(null) - 1)) * n_concepts * self.sites
        direction = along.mean(0)
        return {
            # A concept whose rows equal the random ones has no direction, and no score.
            "value": (slope @ along.T > 0).double().mean()
            if bool(along.any())
            else torch.full((), math.nan).double(),
            "direction_of": direction / direction.norm().clamp(min=1e-300),
            "sensitivity": sensitivity,
            "null_sensitivity": null.mean(),
            "null_spread": spread,
            "p": torch.tensor(min(p, 1.0) if p == p else 1.0, dtype=torch.float64),
            "accuracy": self._accuracy(own, sets[:SETS]),
        }

    def _accuracy(self, own: Tensor, sets: Float[Tensor, "set row dim"]) -> Tensor:
        """Return the accuracy on the third of the rows that was held out from the fit."""
        cut = len(own) * 2 // 3
        used = own[:cut].expand(len(sets), -1, -1)
        along = self._directions(used, sets[:, :cut])
        middle = (used.mean(1) + sets[:, :cut].mean(1)) / 2
        border = (along * middle).sum(1)
        right = (own[cut:] @ along.T > border).double().mean()
        wrong = ((sets[:, cut:] @ along[..., None])[..., 0] > border[:, None]).double().mean()
        return (right + 1 - wrong) / 2

    def _directions(
        self, own: Float[Tensor, "set row dim"], other: Float[Tensor, "set row dim"]
    ) -> Float[Tensor, "set dim"]:
        """Return the unit normal that separates each pair of sets."""
        if self.separator == "signal":
            directions = own.mean(1) - other.mean(1)
        else:
            directions = _logistic(own, other, self.l2)
        return directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _sets(
    pool: Float[Tensor, "row dim"], size: int, n: int, draw: torch.Generator
) -> Float[Tensor, "set size dim"]:
    order = [torch.randperm(len(pool), generator=draw)[:size] for _ in range(n)]
    return torch.stack([pool[o] for o in order])


def _logistic(
    own: Float[Tensor, "set row dim"], other: Float[Tensor, "set row dim"], l2: float
) -> Float[Tensor, "set dim"]:
    """Return the weights that minimise log loss + l2 / 2 (|w|^2 + b^2), for all sets in one batch.

    A Newton step solves ``(Z' D Z + l2) w = Z' D t`` with ``t = Z w + r / D``, a column of ones in
    ``Z`` for the intercept and ``D`` the variances of the answers; where units outnumber rows it
    solves in rows: ``w = Z' a``, ``(Z Z' + l2 / D) a = t``.
    """
    x = torch.cat([own, other], 1)
    z = x - x.mean(1, keepdim=True)
    z = z / z.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-150)
    truth = torch.cat([torch.ones(own.shape[1]), torch.zeros(other.shape[1])]).to(z)
    z = torch.cat([z, torch.ones_like(z[..., :1])], 2)
    kernel = z @ z.mT if z.shape[1] < z.shape[2] else None
    w = torch.zeros_like(z[:, 0])
    for _ in range(NEWTON):
        logit = (z @ w[..., None])[..., 0]
        p = logit.sigmoid()
        d = (p * (1 - p)).clamp(min=1e-9)
        target = (logit + (truth - p) / d)[..., None]
        if kernel is not None:
            a = torch.linalg.solve(kernel + torch.diag_embed(l2 / d), target)
            w = (z.mT @ a)[..., 0]
        else:
            weighed = z.mT * d[:, None]
            bend = weighed @ z + l2 * torch.eye(z.shape[2]).to(z)
            w = torch.linalg.solve(bend, weighed @ target)[..., 0]
    return w[:, :-1]


def _dead(slope: Float[Tensor, "row dim"], value: Float[Tensor, "concept"]) -> tuple[str, ...]:
    unused = ("unused",) * (not bool((slope != 0).any()))
    return (*unused, *("dead",) * bool(value.isnan().any()))
