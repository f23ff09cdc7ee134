"""Match the units of two sites: one-to-one, to the best unit, to a few units, or by clusters."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.random_state import kept_random_state
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._canonical import null_draws
from sonde.measure._flags import moment_flags
from sonde.measure._reads import CrossInstrument
from sonde.stats import CrossMomentsState, MomentsState

ROUNDS = 1000
CLOSE = 1e-9
RIDGE = 1e-10  # copies of a unit share its weight


@dataclass(frozen=True)
class Matched:
    """A matching of the first site's units; ``figure`` averages to the value.

    Parameters
    ----------
    figure : Float[Tensor, "matched"]
        Of each unit that takes part: how well it is matched. Differentiable in the correlations.
    unit : Int[Tensor, "matched"]
        Which units of the first site take part.
    partner : Int[Tensor, "matched"]
        The unit of the second site that each unit is matched to, or is nearest to; -1 = none.
    cluster, cluster2 : Int[Tensor, "dim"]
        The cluster of each unit of either site; all 0 where units are not clustered.
    weight : Float[Tensor, "dim dim2"]
        How the standardised units of the second site make up those of the first.
    """

    figure: Float[Tensor, "matched"]
    unit: Int[Tensor, "matched"]
    partner: Int[Tensor, "matched"]
    cluster: Int[Tensor, "dim"]
    cluster2: Int[Tensor, "dim2"]
    weight: Float[Tensor, "dim dim2"]


def one_to_one(r: Float[Tensor, "dim dim2"]) -> Matched:
    """Return the assignment with the largest sum of absolute correlations."""
    unit, partner = (torch.as_tensor(i) for i in linear_sum_assignment(-_size(r).numpy()))
    return _pairs(r, unit, partner)


def one_to_best(r: Float[Tensor, "dim dim2"]) -> Matched:
    """Return each unit's most correlated partner; units may share a partner."""
    return _pairs(r, torch.arange(len(r)), _size(r).argmax(1))


def one_to_few(
    r: Float[Tensor, "dim dim2"], gram: Float[Tensor, "dim2 dim2"], penalty: float
) -> Matched:
    """Return the fraction of each unit's variance explained by a few units of the second site.

    The weights minimise ``b^T G b / 2 - b^T r + penalty |b|_1`` (the lasso on standardised units).
    """
    rough = _lasso(gram.detach().cpu(), r.detach().cpu().T, penalty).T
    weight = _exact(r, gram, rough.to(r.device), penalty)
    explained = (2 * r * weight - (weight @ gram) * weight).sum(1)
    strongest = torch.where(rough.ne(0).any(1), rough.abs().argmax(1), -1)
    return _match(r, explained, torch.arange(len(r)), strongest, weight=weight.detach())


def many_to_many(r: Float[Tensor, "dim dim2"], k: int) -> Matched:
    """Return each unit's mean absolute correlation with its cluster's units.

    Clusters come from the graph between the two sites, whose edges are absolute correlations:
    k-means on the first vectors of its normalised Laplacian, with each unit's point scaled to
    length 1. A unit has 0 if its cluster has no unit of the other site.
    """
    with kept_random_state():
        from sklearn.cluster import KMeans

    size = _size(r)
    degree, degree2 = (size.sum(axis).clamp(min=1e-300).rsqrt() for axis in (1, 0))
    u, _, vh = torch.linalg.svd(degree[:, None] * size * degree2, full_matrices=False)
    k = min(k, min(size.shape))
    points = torch.nn.functional.normalize(torch.cat([u[:, :k], vh[:k].T]), dim=1)
    label = KMeans(k, n_init=4, random_state=0).fit_predict(points.numpy())  # pyright: ignore
    first, second = torch.as_tensor(label).long().split([len(r), r.shape[1]])
    same = (first[:, None] == second).to(r)
    figure = (r.abs() * same).sum(1) / same.sum(1).clamp(min=1)
    return _match(r, figure, torch.arange(len(r)), size.argmax(1), clusters=(first, second))


def _size(r: Float[Tensor, "dim dim2"]) -> Float[Tensor, "dim dim2"]:
    return r.detach().abs().cpu()


def _pairs(
    r: Float[Tensor, "dim dim2"], unit: Int[Tensor, "matched"], partner: Int[Tensor, "matched"]
) -> Matched:
    return _match(r, r[unit.to(r.device), partner.to(r.device)].abs(), unit, partner)


def _match(
    r: Float[Tensor, "dim dim2"],
    figure: Float[Tensor, "matched"],
    unit: Int[Tensor, "matched"],
    partner: Int[Tensor, "matched"],
    clusters: tuple[Int[Tensor, "dim"], Int[Tensor, "dim2"]] | None = None,
    weight: Float[Tensor, "dim dim2"] | None = None,
) -> Matched:
    if weight is None:  # a matched unit alone, by its correlation
        weight = torch.zeros_like(r).detach()
        at, to = unit.to(r.device), partner.to(r.device)
        weight[at, to] = r.detach()[at, to]
    none = tuple(torch.zeros(n, dtype=torch.int64) for n in r.shape)
    first, second = clusters or none
    return Matched(figure, unit, partner, first, second, weight)


def _lasso(
    gram: Float[Tensor, "dim2 dim2"], target: Float[Tensor, "dim2 dim"], penalty: float
) -> Float[Tensor, "dim2 dim"]:
    """Return the lasso weights of all units at once, by accelerated proximal steps."""
    step = 1.0 / float(torch.linalg.eigvalsh(gram)[-1])
    weights = ahead = torch.zeros_like(target)
    speed = 1.0
    for _ in range(ROUNDS):
        free = ahead - step * (gram @ ahead - target)
        fresh = free.sign() * (free.abs() - step * penalty).clamp(min=0)
        change = fresh - weights
        if float(change.abs().max()) < CLOSE:
            return fresh
        # a step against the last direction starts the acceleration anew
        speed = 1.0 if float(((ahead - fresh) * change).sum()) > 0 else speed
        faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        weights, ahead, speed = fresh, fresh + (speed - 1) / faster * change, faster
    return weights


def _exact(
    r: Float[Tensor, "dim dim2"],
    gram: Float[Tensor, "dim2 dim2"],
    rough: Float[Tensor, "dim dim2"],
    penalty: float,
) -> Float[Tensor, "dim dim2"]:
    """Return the nonzero weights solved exactly, which makes them differentiable.

    ``G_aa b_a = r_a - penalty sign(b_a)`` over the active units ``a`` of each row.
    """
    active = rough.ne(0)
    width = max(int(active.sum(1).max()), 1) if active.numel() else 1
    order = active.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    used = active.gather(1, order)
    matrix = gram[order[:, :, None], order[:, None, :]]
    matrix = matrix * (used[:, :, None] & used[:, None, :])
    matrix = matrix + torch.diag_embed((~used).to(gram) + RIDGE)
    right = (r.gather(1, order) - penalty * rough.gather(1, order).sign()) * used
    solved = torch.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    return torch.zeros_like(r).scatter(1, order, solved * used)


Method = Literal["hard", "soft", "sparse", "clusters"]
METHODS = ("hard", "soft", "sparse", "clusters")


@final
@dataclass(frozen=True, kw_only=True)
class CorrelationMatchResult(Result):
    """Mean score of the first site's units, and the matched units.

    ``figure[i]`` is that of unit ``i`` (NaN if the unit is constant or no partner was left for it),
    ``partner[i]`` the unit of the second site (-1 = none), ``weight`` how standardised units of the
    second site make up those of the first, ``cluster`` and ``cluster2`` the clusters of the units
    of either site (-1 = constant). ``n_dead`` counts the constant units of each site.
    """

    direction: Direction = "higher"
    figure: Float[Tensor, "dim"]
    partner: Int[Tensor, "dim"]
    weight: Float[Tensor, "dim dim2"]
    cluster: Int[Tensor, "dim"]
    cluster2: Int[Tensor, "dim2"]
    n_dead: tuple[int, int]


@final
@dataclass(frozen=True)
class CorrelationMatch(CrossInstrument):
    """Correlation of one site's units with the best matching units of another.

    Two networks may span the same subspace with different units. This measure sees the rotation
    between them, to which ``cka`` is blind. All methods use the correlations ``R`` of units:

    - ``hard``: mean ``|R|`` of the best assignment of units one to one;
    - ``soft``: mean over units of the largest ``|R|``;
    - ``sparse``: mean share of a unit's variance that few units explain (lasso);
    - ``clusters``: mean ``|R|`` between units of one cluster of the graph with edges ``|R|``.

    The null is the mean over simulated unrelated rows with the correlations within each site.

    Range        [0, 1]; higher = more alike. Invariant to permutation, scales and signs of units,
                 shifts.
    Cost         one pass; state 8 (dim^2 + dim2^2 + dim dim2) bytes; result O(dim^3), and as much
                 for each draw of the null.
    Assumes      more rows than ``dim``. Constant units take no part. The standard error takes the
                 match as given.
    Differs      from the paper: clusters are those of the graph between the sites alone.

    Parameters
    ----------
    method : {"hard", "soft", "sparse", "clusters"}, default="hard"
        How units are matched.
    penalty : float, default=0.1
        Smallest correlation that counts for ``sparse``: a correlation below it explains nothing.
    n_clusters : int, default=8
        Number of clusters for ``clusters``, at most the number of units of the narrower site.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    >>> result = correlation_match(x, -2 * x.flip(1))
    >>> round(result.value, 6), result.partner.tolist()
    (1.0, [3, 2, 1, 0])

    References
    ----------
    li2016convergent, tibshirani1996lasso, dhillon2001coclustering
    """

    method: Method = "hard"
    penalty: float = 0.1
    n_clusters: int = 8
    least_rows: ClassVar[int] = 3
    paper: ClassVar[str] = "li2016convergent"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"method": "soft"},
        {"method": "sparse", "penalty": 0.2},
        {"method": "clusters", "n_clusters": 2},
    )

    def __post_init__(self) -> None:
        check_ranges(self, method=METHODS, n_clusters=">= 1")
        if not self.penalty > 0.0:
            raise InputError(
                f"CorrelationMatch: expected a penalty above 0, got {self.penalty}. "
                "For no penalty take regression."
            )

    def result(
        self,
        cross: CrossMomentsState,
        each: tuple[MomentsState, MomentsState],
        independent: float | None = None,
    ) -> CorrelationMatchResult:
        """Match the units by their correlations."""
        x, y = each
        flags = tuple(dict.fromkeys(moment_flags(x) + moment_flags(y)))
        live = [torch.nonzero(m.variance.detach() > 0).flatten() for m in each]
        dims = len(x.mean), len(y.mean)
        within = [_correlations(m.scatter, m, m, at, at) for m, at in zip(each, live, strict=True)]
        matched, null = None, None
        if "dead" not in flags:
            r = _correlations(cross.cross, x, y, live[0], live[1])
            matched = self._matched(r, within[1])
            null = self._null(within[0], within[1], independent or cross.n)
        units, others = (at.cpu() for at in live)
        figure = torch.full((dims[0],), math.nan, dtype=torch.float64)
        partner, cluster = (torch.full((dims[0],), -1) for _ in range(2))
        cluster2, weight = torch.full((dims[1],), -1), torch.zeros(dims, dtype=torch.float64)
        if matched is not None:
            figure[units[matched.unit]] = matched.figure.detach().double().cpu()
            named = torch.where(matched.partner < 0, -1, others[matched.partner])
            partner[units[matched.unit]] = named
            cluster[units], cluster2[others] = matched.cluster, matched.cluster2
            weight[units[:, None], others] = matched.weight.double().cpu()
        return CorrelationMatchResult(
            value=math.nan if matched is None else matched.figure.mean(),
            null=null,
            n=cross.n,
            range=(0.0, 1.0),
            flags=flags,
            conventions={"method": self.method, "null": "unrelated rows"},
            figure=figure,
            partner=partner,
            weight=weight,
            cluster=cluster,
            cluster2=cluster2,
            n_dead=(dims[0] - len(units), dims[1] - len(others)),
        )

    def _matched(self, r: Float[Tensor, "dim dim2"], gram: Float[Tensor, "dim2 dim2"]) -> Matched:
        if self.method == "hard":
            return one_to_one(r)
        if self.method == "soft":
            return one_to_best(r)
        if self.method == "sparse":
            return one_to_few(r, gram, self.penalty)
        return many_to_many(r, self.n_clusters)

    def _null(self, x: Float[Tensor, "dim dim"], y: Float[Tensor, "dim2 dim2"], n: float) -> float:
        """Return the mean value for unrelated rows with each site's own correlations."""
        left, right = _root(x), _root(y)
        generator = torch.Generator().manual_seed(0)
        draws = null_draws(len(left) * len(right))
        total = 0.0
        for _ in range(draws):
            noise = torch.randn(len(left), len(right), generator=generator, dtype=torch.float64)
            r = left @ noise @ right / max(n - 1, 1) ** 0.5
            total += float(self._matched(r, y.detach().double().cpu()).figure.mean())
        return total / draws


def _correlations(
    scatter: Float[Tensor, "_dim _dim2"],
    x: MomentsState,
    y: MomentsState,
    units: Int[Tensor, "live"],
    others: Int[Tensor, "live2"],
) -> Float[Tensor, "live live2"]:
    first, second = (x.variance * x.n)[units].rsqrt(), (y.variance * y.n)[others].rsqrt()
    return first[:, None] * scatter[units[:, None], others] * second


def _root(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    values, vectors = torch.linalg.eigh(matrix.detach().double().cpu())
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


correlation_match = as_function(CorrelationMatch)
