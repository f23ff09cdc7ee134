"""Student's quantile over the normal one, by scipy.stats: how much errors from few groups widen."""

from scipy.stats import norm, t


def student(n_groups: float) -> float:
    """Return by how much the standard error of so many groups, fewer than 32, is widened."""
    assert n_groups < 32
    return float(t.ppf(0.975, n_groups - 1) / norm.ppf(0.975))
