"""Definitions of intrinsic dimensions, from the neighbours that scipy's tree finds."""

import numpy as np
from scipy.optimize import brentq
from scipy.spatial import KDTree


def _distances(x, k):
    """Return the distances of the ``k`` nearest other rows of each row (no two rows are equal)."""
    return KDTree(x).query(x, k + 1)[0][:, 1:]


def two_nn(x, fit="ml"):
    """Dimension from the ratio ``mu`` of the second and the first distance (Facco et al.).

    ``slope``: that of the line through the origin and the points ``(ln mu, -ln (1 - i / n))``, of
    which the tenth with the largest ``mu`` is left out. ``ml``: ``(n - 1) / sum ln mu``.
    """
    near = _distances(x, 2)
    logs = np.sort(np.log(near[:, 1] / near[:, 0]))
    n = len(logs)
    if fit == "ml":
        return (n - 1) / logs.sum()
    kept = n * 9 // 10
    tail = -np.log(1 - np.arange(1, kept + 1) / n)
    return np.linalg.lstsq(logs[:kept, None], tail, rcond=None)[0][0]


def mle_dimension(x, k=20):
    """The inverse of the mean of ``ln(r_k / r_a)`` over rows and ``a < k`` (MacKay, Ghahramani)."""
    far = _distances(x, k)
    return 1 / np.log(far[:, -1:] / far[:, :-1]).mean()


def gride(x, a):
    """Dimension of greatest likelihood from distances of the neighbours ``a`` and ``2 a``.

    The density of their ratio is ``d (mu^d - 1)^(a - 1) / (B(a, a) mu^((2 a - 1) d + 1))`` (Denti
    et al.); its logarithm has the slope that is 0 here.
    """
    far = _distances(x, 2 * a)
    logs = np.log(far[:, 2 * a - 1] / far[:, a - 1])

    def slope(d):
        power = np.exp(d * logs)
        return (1 / d + (a - 1) * logs * power / (power - 1) - (2 * a - 1) * logs).sum()

    return brentq(slope, 0.1, 100.0, xtol=1e-13)
