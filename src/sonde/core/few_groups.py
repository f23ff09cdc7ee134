"""Standard errors from few groups of rows: Student's t in place of the normal quantile.

The spread over ``G`` groups has ``G - 1`` degrees of freedom. From few groups it is often much too
small by chance, and ``value +- 1.96 se`` would hold the truth too rarely. Errors are therefore
multiplied by ``t(.975, G - 1) / 1.96``: the interval is then Student's.
"""

from typing import TypeVar

from scipy.special import ndtri, stdtrit  # pyright: ignore

MANY_GROUPS = 32
"""From so many groups on the factor is below 1.05, and errors are not widened."""
FEW_GROUPS = 8
"""With fewer groups a result has the flag ``few_groups``."""

E = TypeVar("E")


def student_factor(n_groups: int) -> float:
    """Return ``t(.975, n_groups - 1)`` over the normal quantile; 1 from 32 groups on.

    Below two groups no error is known, and the factor is 1.

    Examples
    --------
    >>> [round(student_factor(n), 2) for n in (2, 5, 10, 31, 32)]
    [6.48, 1.42, 1.15, 1.04, 1.0]
    """
    if not 2 <= n_groups < MANY_GROUPS:
        return 1.0
    return float(stdtrit(n_groups - 1, 0.975)) / float(ndtri(0.975))


def widen_error(error: E, n_groups: int) -> E:
    """Return a standard error from groups so that ``value +- 1.96 error`` is Student's interval.

    Parameters
    ----------
    error : float, Tensor or None
        The spread over groups, for a normal interval; None stays None.
    n_groups : int
        Number of independent groups that it comes from.
    """
    return error if error is None else error * student_factor(n_groups)  # type: ignore[operator]
