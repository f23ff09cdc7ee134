"""Definitions of comparisons of two sites, in numpy and scipy, from whole rows.

Sonde takes most of them from sums over rows; nothing of it is used here.
"""

import itertools

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cosine, pdist
from scipy.stats import pearsonr, rankdata, spearmanr


def _centred(x):
    x = np.asarray(x, dtype=float)
    return x - x.mean(0)


def canonical_correlations(x, y):
    """Return the cosines of the angles between the spans of the units (Björck and Golub)."""
    one, two = (np.linalg.qr(_centred(z))[0] for z in (x, y))
    return np.linalg.svd(one.T @ two, compute_uv=False)


def principal_components(x, keep):
    """Return the fewest principal components that hold a share ``keep`` of the variance."""
    x = _centred(x)
    _, s, directions = np.linalg.svd(x, full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return x @ directions[: np.argmax(share >= keep * (1 - 1e-12)) + 1].T


def svcca(x, y, keep=0.99):
    """Mean canonical correlation of the principal components of two sites (Raghu et al.)."""
    return canonical_correlations(*(principal_components(z, keep) for z in (x, y))).mean()


def pwcca(x, y):
    """``sum w rho / sum w`` with ``w_a = sum_j |<h_a, x_j>|`` (Morcos et al.).

    The canonical variates ``h`` of ``x`` are left singular vectors of ``Q_x Q_x^T Q_y``.
    """
    x = _centred(x)
    one, two = (np.linalg.qr(z)[0] for z in (x, _centred(y)))
    variate, rho, _ = np.linalg.svd(one @ (one.T @ two), full_matrices=False)
    weight = np.abs(variate.T @ x).sum(1)
    return (weight * rho).sum() / weight.sum()


def biased_cka(x, y):
    """``<K, L> / (|K| |L|)`` of the inner products of centred rows (Kornblith et al.)."""
    k, m = (_centred(z) @ _centred(z).T for z in (x, y))
    return np.vdot(k, m) / (np.linalg.norm(k) * np.linalg.norm(m))


def _doubly_centred(x):
    """Return inner products less unbiased means of lines and columns (Székely and Rizzo)."""
    k = np.asarray(x, dtype=float) @ np.asarray(x, dtype=float).T
    n = len(k)
    np.fill_diagonal(k, 0.0)
    line = k.sum(1) / (n - 2)
    k += k.sum() / ((n - 1) * (n - 2)) - line[:, None] - line
    np.fill_diagonal(k, 0.0)
    return k


def debiased_cka(x, y):
    """The cosine of both sites' inner products after unbiased centring.

    The mean of their products is the unbiased independence criterion of Song et al.
    """
    k, m = _doubly_centred(x), _doubly_centred(y)
    return np.vdot(k, m) / (np.linalg.norm(k) * np.linalg.norm(m))


def grouped_cka(x, y, group):
    """Debiased alignment in which all rows of one term are of different groups.

    The criterion is ``E k_ij l_ij - 2 E k_ij l_ik + E k_ij l_kq``: the means over all choices of
    two, three and four groups, where each group's term is the mean over its rows.
    """
    group = np.asarray(group)
    mean = np.stack([(group == g) / np.sum(group == g) for g in np.unique(group)])
    n = len(mean)
    other = 1.0 - np.eye(n)
    three = np.einsum("ab,ac,bc->abc", other, other, other)
    four = np.einsum("abc,ad,bd,cd->abcd", three, other, other, other)

    def criterion(k, m):
        pairs = (mean @ (k * m) @ mean.T * other).sum() / other.sum()
        triples = np.einsum("ai,ib,ic,abc->", mean, k @ mean.T, m @ mean.T, three, optimize=True)
        k, m = mean @ k @ mean.T, mean @ m @ mean.T
        quadruples = np.einsum("ab,cd,abcd->", k, m, four, optimize=True)
        return pairs - 2 * triples / three.sum() + quadruples / four.sum()

    k, m = (np.asarray(z, dtype=float) @ np.asarray(z, dtype=float).T for z in (x, y))
    return criterion(k, m) / np.sqrt(criterion(k, k) * criterion(m, m))


def procrustes(x, y):
    """Return the squared distance after the best rotation, of unit norm and at original size."""
    x, y = _centred(x), _centred(y)
    y = np.pad(y, ((0, 0), (0, x.shape[1] - y.shape[1])))
    turned = y @ orthogonal_procrustes(y, x)[0]
    unit = x / np.linalg.norm(x) - turned / np.linalg.norm(y)
    return np.square(unit).sum(), np.square(x - turned).sum()


def gulp(x, y, ridge=0.0):
    """Squared distance of the ridge predictions of two sites, summed over one target per row.

    Each prediction is least squares with ``dim`` further rows of ``sqrt(n ridge)`` and target 0.
    """

    def predictions(z):
        dim, z = z.shape[1], _centred(z)
        rows = np.vstack([z, np.sqrt(len(z) * ridge) * np.eye(dim)])
        targets = np.vstack([np.eye(len(z)), np.zeros((dim, len(z)))])
        return z @ np.linalg.lstsq(rows, targets, rcond=None)[0]

    return np.square(predictions(x) - predictions(y)).sum()


def explained_variance(x, y):
    """``1 - residual / total`` of the least squares of ``y`` on ``x`` and a constant."""
    rows = np.column_stack([np.ones(len(x)), x])
    y = np.asarray(y, dtype=float)
    residual = y - rows @ np.linalg.lstsq(rows, y, rcond=None)[0]
    return 1 - np.square(residual).sum() / np.square(_centred(y)).sum()


def rsa(x, y, comparison="spearman"):
    """Compare the squared distances of all pairs of rows (Kriegeskorte et al.)."""
    one, two = (pdist(np.asarray(z), "sqeuclidean") for z in (x, y))
    if comparison == "cosine":
        return 1 - cosine(one, two)
    return {"spearman": spearmanr, "pearson": pearsonr}[comparison](one, two)[0]


def correlation_match(x, y):
    """Return the mean ``|R|`` of the best of all pairings of units, and of each unit's largest."""
    x, y = np.asarray(x), np.asarray(y)
    size = np.abs(np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :])
    units = range(size.shape[1])
    best = max(
        np.mean([size[i, j] for i, j in zip(chosen, units, strict=True)])
        for chosen in itertools.permutations(range(len(size)), len(units))
    )
    return best, size.max(1).mean()


def crossnobis(mean):
    """Return the mean over parts ``f != h`` of ``d^f' d^h / dim`` for all pairs of classes.

    ``mean`` has the rows (part, class, dim); ``d^f`` is the difference of two classes in a part.
    """
    parts, classes, dim = mean.shape
    found = []
    for a, b in itertools.combinations(range(classes), 2):
        d = mean[:, a] - mean[:, b]
        found.append(np.mean([d[f] @ d[h] for f, h in itertools.permutations(range(parts), 2)]))
    return np.array(found) / dim


def _nearest(x, k):
    """Return the ``k`` nearest other rows of each row."""
    x = np.asarray(x)
    found = []
    for i in range(len(x)):
        far = np.square(x - x[i]).sum(1)
        far[i] = np.inf
        found.append(set(np.argsort(far, kind="stable")[:k].tolist()))
    return found


def mutual_knn(x, y, k):
    """Return the mean of common neighbours over ``k``, and over the union (Huh et al.)."""
    both = list(zip(_nearest(x, k), _nearest(y, k), strict=True))
    return np.mean([len(a & b) / k for a, b in both]), np.mean(
        [len(a & b) / len(a | b) for a, b in both]
    )


def information_imbalance(x, y):
    """``2 / n`` times the mean rank, at ``y``, of the nearest row at ``x`` (Glielmo et al.)."""
    y = np.asarray(y)
    ranks = []
    for i, (near,) in enumerate(_nearest(x, 1)):
        others = np.delete(np.arange(len(y)), i)
        rank = rankdata(np.square(y[others] - y[i]).sum(1))
        ranks.append(rank[np.flatnonzero(others == near)[0]])
    return 2 / len(y) * np.mean(ranks)


def cknna(x, y, k):
    """Debiased alignment of the inner products of common neighbours (Huh et al.).

    With the products as edges of a graph, the criterion of Song et al. counts edges back and
    forth, paths of two edges, and pairs of edges.
    """
    edges = []
    for z in (x, y):
        z = _centred(z)
        for_row = []
        for i, row in enumerate(z):
            product = z @ row
            product[i] = -np.inf
            for_row.append({(i, int(j)): product[j] for j in np.argsort(product)[-k:]})
        edges.append({pair: v for found in for_row for pair, v in found.items()})

    def criterion(a, b):
        n, leaving = len(x), np.zeros(len(x))
        for (i, _), v in b.items():
            leaving[i] += v
        back = sum(v * b.get((j, i), 0.0) for (i, j), v in a.items())
        paths = sum(v * leaving[j] for (_, j), v in a.items())
        return back + sum(a.values()) * leaving.sum() / ((n - 1) * (n - 2)) - 2 * paths / (n - 2)

    shared = [
        {pair: v for pair, v in one.items() if pair in two} for one, two in (edges, edges[::-1])
    ]
    own = [criterion(a, a) for a in edges]
    return criterion(*shared) / np.sqrt(own[0] * own[1])
