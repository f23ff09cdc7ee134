"""What each arm of a study was given, and which comparisons are unequal.

``minimise`` notes updates, rows and trained numbers of the arm in which it is called. An arm is a
block of ``arm``, or, without one, what a study does after it has told its progress line the arm's
name. A study adds what else an arm has. A claim that names its two arms then has to say in its
sentence in which of these they differ.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import ParamSpec, TypeVar

GIVEN: dict[str, str] = {
    "updates": r"updates?|steps?|epochs?|longer|budget|twice",
    "rows": r"rows?|examples?|images?|labels?|texts?",
    "parameters": r"parameters?|weights|numbers|wider?|larger|units|norms",
    "passes": r"passes|forwards?|cost",
    "bytes": r"bytes|memory",
}
"""Each resource with the words by which a sentence admits that arms differ in it."""
EQUAL = 0.05
"""Largest relative difference of arms that are called equal."""
SEPARATOR = "given | "


@dataclass
class Arms:
    """Resources by arm, filled while a study runs.

    Parameters
    ----------
    given : dict of str to dict of str to float
        Resource by arm; the keys of the inner dictionaries are those of ``GIVEN``.
    """

    given: dict[str, dict[str, float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Return every resource as a figure of the study, ``given | arm | resource``."""
        return {
            f"{SEPARATOR}{arm} | {what}": float(n)
            for arm, found in self.given.items()
            for what, n in found.items()
        }


P = ParamSpec("P")
T = TypeVar("T")
_CURRENT: ContextVar[tuple[Arms, str] | None] = ContextVar("arm", default=None)


@contextmanager
def arm(arms: Arms, name: str) -> Iterator[None]:
    """Note what is trained in the ``with`` block as given to an arm.

    Parameters
    ----------
    arms : Arms
    name : str
    """
    arms.given.setdefault(name, {})
    token = _CURRENT.set((arms, name))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def stages(arms: Arms) -> Iterator[Callable[[str], None]]:
    """Yield a function that begins an arm: what is trained from then on is given to it.

    An inner ``arm`` block goes before it.

    Parameters
    ----------
    arms : Arms
    """
    token = _CURRENT.set(None)

    def begin(name: str) -> None:
        arms.given.setdefault(name, {})
        _CURRENT.set((arms, name))

    try:
        yield begin
    finally:
        _CURRENT.reset(token)


def note(**given: float) -> None:
    """Add resources to the arm in whose block this is called; outside of a block nothing happens.

    Parameters
    ----------
    **given : float
        By their names in ``GIVEN``. Updates and passes add up; of rows and parameters the largest
        number counts, because a second training may read the same rows.
    """
    if (current := _CURRENT.get()) is None:
        return
    arms, name = current
    found = arms.given[name]
    for what, n in given.items():
        adds = what in ("updates", "passes")
        found[what] = found.get(what, 0.0) + n if adds else max(found.get(what, 0.0), n)


def trained_once(train: Callable[P, T]) -> Callable[P, T]:
    """Cache what a function trains, and note its resources in every arm that asks for it.

    With ``functools.cache`` alone only the arm that asks first would be given the training, so the
    figures of a study would depend on which studies ran before it in the same process.

    Parameters
    ----------
    train : callable
        A function of hashable arguments; its result is shared.
    """

    @cache
    def once(*args: P.args, **kwargs: P.kwargs) -> tuple[T, dict[str, float]]:
        recorded = Arms()
        with arm(recorded, "trained"):
            result = train(*args, **kwargs)
        return result, recorded.given["trained"]

    @wraps(train)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        result, given = once(*args, **kwargs)
        note(**given)
        return result

    return asked


def unequal(one: str, two: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Return, for each resource that two arms have unequally, the first arm's over the second's.

    Parameters
    ----------
    one, two : str
        Names of the arms.
    figures : mapping of str to float
        Figures of a seed, or means over seeds.

    Raises
    ------
    LookupError
        If an arm noted nothing.
    """
    found: dict[str, float] = {}
    for what in GIVEN:
        keys = [f"{SEPARATOR}{name} | {what}" for name in (one, two)]
        have = [key in figures for key in keys]
        if any(have) != all(have):
            raise LookupError(f"expected {what} of the arms {one!r} and {two!r}, got one of them")
        if all(have) and figures[keys[1]]:
            ratio = figures[keys[0]] / figures[keys[1]]
            if abs(ratio - 1) > EQUAL:
                found[what] = ratio
    noted = (f"{SEPARATOR}{name} | {what}" for name in (one, two) for what in ("updates", "bytes"))
    if not any(key in figures for key in noted):
        raise LookupError(f"expected what the arms {one!r} and {two!r} were given, got nothing")
    return found


def unsaid(sentence: str, differences: Mapping[str, float]) -> list[str]:
    """Return the resources in which arms differ without a word of it in the sentence."""
    return [w for w in differences if not re.search(rf"(?i)\b({GIVEN[w]})\b", sentence)]
