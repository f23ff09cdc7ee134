"""Definitions of figures of one site's variance, in numpy, from the singular values of whole rows.

Sonde takes them from sums over rows; nothing of it is used here.
"""

import numpy as np
from scipy.stats import entropy


def singular_values(x, centered=True):
    """Return the singular values of the rows, by default of the centred rows."""
    x = np.asarray(x, dtype=float)
    return np.linalg.svd(x - x.mean(0) if centered else x, compute_uv=False)


def variances(x):
    """Return ``s^2 / n``, the variance along each principal direction, in descending order."""
    return singular_values(x) ** 2 / len(x)


def effective_rank(x, centered=False):
    """``exp(-sum p ln p)`` with ``p = s / sum s`` of the singular values (Roy and Vetterli)."""
    return np.exp(entropy(singular_values(x, centered)))


def entropy_rank(x):
    """``exp(-sum p ln p)`` with ``p = l / sum l`` of the variances along principal directions."""
    return np.exp(entropy(variances(x)))


def participation_ratio(x):
    """``(sum l)^2 / sum l^2``: the squared trace over the squared norm of all inner products."""
    x = np.asarray(x, dtype=float) - np.asarray(x, dtype=float).mean(0)
    products = x @ x.T
    return np.trace(products) ** 2 / np.square(products).sum()


def stable_rank(x):
    """``|x|_F^2 / |x|_2^2`` of the centred rows (Rudelson and Vershynin)."""
    x = np.asarray(x, dtype=float) - np.asarray(x, dtype=float).mean(0)
    return np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2


def coding_rate(x, eps2):
    """``sum ln(1 + dim s^2 / (n eps2)) / 2`` over singular values ``s`` of the unit rows."""
    x = np.asarray(x, dtype=float)
    s = singular_values(x / np.linalg.norm(x, axis=1, keepdims=True), centered=False)
    return np.log1p(x.shape[1] / (len(x) * eps2) * s**2).sum() / 2


def rate_reduction(x, label, eps2):
    """``R - sum_k n_k / n R_k``: the rate of all rows less those of each class (Yu et al.)."""
    x, label = np.asarray(x, dtype=float), np.asarray(label)
    parts = [np.mean(label == k) * coding_rate(x[label == k], eps2) for k in np.unique(label)]
    return coding_rate(x, eps2) - sum(parts)
