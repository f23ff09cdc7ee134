"""Ways to match the units of two sites, from their correlations alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDS = 1000
CLOSE = 1e-9
RIDGE = 1e-10  # copies of a unit share its weight


@dataclass(frozen=True)
class Matched:
    """A match of the units of the first site; the mean of ``figure`` is the value.

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
    """Return the partner that each unit correlates with most; units may share a partner."""
    return _pairs(r, torch.arange(len(r)), _size(r).argmax(1))


def one_to_few(
    r: Float[Tensor, "dim dim2"], gram: Float[Tensor, "dim2 dim2"], penalty: float
) -> Matched:
    """Return the share of each unit's variance that few units of the second site explain.

    The weights minimise ``b^T G b / 2 - b^T r + penalty |b|_1`` (the lasso on standardised units).
    """
    rough = _lasso(gram.detach().cpu(), r.detach().cpu().T, penalty).T
    weight = _exact(r, gram, rough.to(r.device), penalty)
    explained = (2 * r * weight - (weight @ gram) * weight).sum(1)
    strongest = torch.where(rough.ne(0).any(1), rough.abs().argmax(1), -1)
    return _match(r, explained, torch.arange(len(r)), strongest, weight=weight.detach())


def many_to_many(r: Float[Tensor, "dim dim2"], k: int) -> Matched:
    """Return each unit's mean absolute correlation with the units of its cluster.

    Clusters come from the graph between the two sites, whose edges are absolute correlations:
    k-means on the first vectors of its normalised Laplacian, with each unit's point scaled to
    length 1. A unit has 0 if its cluster has no unit of the other site.
    """
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
    found = ahead = torch.zeros_like(target)
    speed = 1.0
    for _ in range(ROUNDS):
        free = ahead - step * (gram @ ahead - target)
        fresh = free.sign() * (free.abs() - step * penalty).clamp(min=0)
        change = fresh - found
        if float(change.abs().max()) < CLOSE:
            return fresh
        # a step against the last direction starts the acceleration anew
        speed = 1.0 if float(((ahead - fresh) * change).sum()) > 0 else speed
        faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        found, ahead, speed = fresh, fresh + (speed - 1) / faster * change, faster
    return found


def _exact(
    r: Float[Tensor, "dim dim2"],
    gram: Float[Tensor, "dim2 dim2"],
    rough: Float[Tensor, "dim dim2"],
    penalty: float,
) -> Float[Tensor, "dim dim2"]:
    """Return the weights with the nonzero weights solved exactly, so that they are differentiable.

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
