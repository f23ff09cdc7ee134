"""The simplest factor of a column among factors that fit about equally well."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.trial import chance_of_gain

POWERS: Final = tuple(10.0**k for k in range(-4, 5))
BETWEEN: Final = tuple(m * 10.0**k for k in range(-4, 4) for m in (2.0, 5.0))
WORSE: Final = 0.02
BEYOND: Final = 0.05


@dataclass(frozen=True)
class SimplestFactor:
    """A factor, and the interval of factors that do about as well on the selection rows."""

    factor: float
    low: float
    high: float


def simplest_factor(
    scores: Callable[[float], Float[Tensor, "row"] | None],
    best: float,
    units: Sequence[float],
    group: Int[Tensor, "row"] | None = None,
) -> SimplestFactor:
    """Return the simplest factor that does about as well as ``best`` on the selection rows.

    Powers of ten are simplest, then factors between units, then other round numbers.

    Parameters
    ----------
    scores : callable
        Gives the scores of the rows that choose, by factor; None if the model cannot run.
    best : float
    units : sequence of float
        Factors between usual units.
    group : Int[Tensor, "row"], optional
        Group of each row, such as copies: groups are the units of the test. None = every row.
    """
    top = scores(best)
    if top is None or best <= 0:
        return SimplestFactor(best, best, best)
    factors = sorted({*POWERS, *units, *BETWEEN, best} - {1.0})
    at = factors.index(best)
    tied = [best]
    for side in (factors[at + 1 :], factors[:at][::-1]):
        for factor in side:
            scored = scores(factor)
            if scored is None or not is_tied(scored, top, group):
                break
            tied.append(factor)
    kinds = (POWERS, units, BETWEEN)
    rank = {f: min((i for i, kind in enumerate(kinds) if f in kind), default=3) for f in tied}
    chosen = min(tied, key=lambda f: (rank[f], max(f / best, best / f)))
    return SimplestFactor(chosen, min(tied), max(tied))


def is_tied(
    found: Float[Tensor, "row"], top: Float[Tensor, "row"], group: Int[Tensor, "row"] | None
) -> bool:
    """Return whether scores are about as good as the best ones, or not significantly worse."""
    less = float((top - found).double().mean())
    return less <= WORSE or (less <= 5 * WORSE and chance_of_gain(found, top, group) > BEYOND)


def factor_words(name: str, factor: float) -> str:
    """Describe the change of one column, to follow the word "with".

    Examples
    --------
    >>> factor_words("width", 10.0), factor_words("width", 0.01)
    ('width multiplied by 10', 'width divided by 100')
    """
    if factor >= 1:
        return f"{name} multiplied by {factor:g}"
    return f"{name} divided by {1 / factor:g}"
