"""Measures of labelled rows by their definitions, in numpy: class by class, or pair by pair."""

import numpy as np
from scipy.spatial.distance import cdist, pdist


def _classes(x, label):
    x, label = np.asarray(x, dtype=float), np.asarray(label)
    return [x[label == k] for k in np.unique(label)]


def class_collapse(x, label):
    """``tr(S_W S_B^+) / classes``: within-class over between-class covariance (Papyan et al.)."""
    rows = _classes(x, label)
    mean = np.stack([z.mean(0) for z in rows])
    within = sum((z - m).T @ (z - m) for z, m in zip(rows, mean, strict=True)) / len(label)
    between = sum(np.outer(m, m) for m in mean - mean.mean(0)) / len(rows)
    rank = len(rows) - 1
    values, vectors = np.linalg.eigh(between)
    scaled = vectors[:, -rank:] / np.sqrt(values[-rank:])
    return np.trace(scaled.T @ within @ scaled) / len(rows)


def lda_ratio(x, label):
    """``tr(S_T^+ S_B) / (classes - 1)`` and its value for labels that say nothing.

    It is the mean share of the variance of a contrast of the classes that a least squares on the
    rows explains, and by chance the share of the dimensions among ``n - 1``.
    """
    x, label = np.asarray(x, dtype=float), np.asarray(label)
    said = (label[:, None] == np.unique(label)).astype(float)
    contrasts = np.linalg.svd(said - said.mean(0), full_matrices=False)[0][:, :-1]
    x = x - x.mean(0)
    explained = x @ np.linalg.lstsq(x, contrasts, rcond=1e-10)[0]
    return np.square(explained).sum(0).mean(), np.linalg.matrix_rank(x) / (len(x) - 1)


def alignment_quality(x, label):
    """Return the four indices of two classes, each mapped to 0 .. 1 (Borah et al.).

    Davies-Bouldin: mean distances from the class mean over the distance of the means. Dunn: the
    least distance between classes over the largest within. Xie-Beni: the mean squared distance
    from the class mean over the squared distance of the means. Last, the share of the variance
    between classes.
    """
    a, b = _classes(x, label)
    apart = np.linalg.norm(a.mean(0) - b.mean(0))
    own = [np.linalg.norm(z - z.mean(0), axis=1) for z in (a, b)]
    bouldin = (own[0].mean() + own[1].mean()) / apart
    dunn = cdist(a, b).min() / max(pdist(a).max(), pdist(b).max())
    squares = np.square(np.concatenate(own))
    beni = squares.mean() / apart**2
    x = np.asarray(x)
    total = np.square(pdist(x)).sum() / len(x)
    return 1 / (1 + bouldin), dunn / (1 + dunn), 1 / (1 + beni), 1 - squares.sum() / total


def pairs_bound(x, label, noise):
    """``tr S_W / (n noise)``: half the mean squared distance of pairs of rows of a class."""
    found = sum(np.square(pdist(z)).sum() / len(z) for z in _classes(x, label))
    return found / (len(label) * noise)


def mixture_bound(x, label, spread):
    """The mean over rows of ``-ln mean_j exp(-d_ij^2 / spread)`` over rows ``j`` of its class."""
    found = []
    for z in _classes(x, label):
        for row in z:
            found.append(-np.log(np.mean([np.exp(-np.square(row - o).sum() / spread) for o in z])))
    return np.mean(found)
