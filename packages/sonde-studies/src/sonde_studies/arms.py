"""What each arm of a study was given, and which comparisons are unequal.

Every step of an optimiser of torch counts as an update of the arm in which it is made, with the
number of parameters that it moves; ``minimise`` notes the rows. An arm is a block of ``arm``, or,
without one, what a study does after it has told its progress line the arm's name. A study adds what
else an arm has. A claim that names its two arms then has to say in its sentence in which of these
they differ.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

GIVEN: dict[str, str] = {
    "updates": r"updates?|steps?|epochs?|longer|budget|twice",
    "rows": r"rows?|examples?|images?|labels?|texts?|prompts?",
    "parameters": r"parameters?|weights|numbers|wider?|larger|units|norms|twice",
    "passes": r"pass(es)?|forwards?|cost",
    "bytes": r"bytes|memory",
}
"""Each resource with the words by which a sentence admits that arms differ in it."""
TRAINED = r"(un)?(trained|tuned|taught|learned)|training|tuning|as (it|they) (is|are)|before"
"""How a sentence says that only one of two arms was trained."""
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
            f"{SEPARATOR}{arm} | {what}": float(found[what])
            for arm, found in self.given.items()
            for what in GIVEN
            if what in found
        }


P = ParamSpec("P")
T = TypeVar("T")
_CURRENT: ContextVar[tuple[Arms, str] | None] = ContextVar("arm", default=None)
_HEARD: ContextVar[bool] = ContextVar("heard", default=False)


def _note_update(optimiser: Optimizer, *_: Any) -> None:
    moved = [p for group in optimiser.param_groups for p in group["params"]]
    note(updates=1, parameters=sum(p.numel() for p in moved if p.grad is not None))


@contextmanager
def _updates_heard() -> Iterator[None]:
    """Note every step of an optimiser that is made in the block, once however blocks are nested."""
    if _HEARD.get():
        yield
        return
    hook, token = register_optimizer_step_post_hook(_note_update), _HEARD.set(True)
    try:
        yield
    finally:
        hook.remove()
        _HEARD.reset(token)


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
        with _updates_heard():
            yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Note what is trained in the ``with`` block as given to an arm of the study that runs.

    Nothing is noted where no study runs.

    Parameters
    ----------
    name : str
    """
    if (current := _CURRENT.get()) is None:
        yield
        return
    with arm(current[0], name):
        yield


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
        with _updates_heard():
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


def note_for(name: str, **given: float) -> None:
    """Add resources to an arm of the study that runs, by its name.

    For arms that train nothing, such as two scores of the same states.

    Parameters
    ----------
    name : str
    **given : float
        As ``note`` takes them.
    """
    with part(name):
        note(**given)


def note_again(name: str, of: str) -> None:
    """Note that an arm is the net of another arm, read or changed in another way.

    Parameters
    ----------
    name, of : str
    """
    if (current := _CURRENT.get()) is not None:
        given = current[0].given
        given[name] = {**given[of]}


def note_mean(name: str, of: Iterable[str]) -> None:
    """Note that an arm is the mean of other arms' results: it has the mean of what they had.

    Parameters
    ----------
    name : str
    of : iterable of str
        Names of arms that noted the same resources.
    """
    if (current := _CURRENT.get()) is not None:
        given = current[0].given
        each = [given[other] for other in of]
        given[name] = {what: sum(g[what] for g in each) / len(each) for what in each[0]}


def note_sum(name: str, of: Iterable[str]) -> None:
    """Note that an arm uses the nets of other arms together: all they had but rows adds up.

    Parameters
    ----------
    name : str
    of : iterable of str
        Names of arms.
    """
    if (current := _CURRENT.get()) is not None:
        given = current[0].given
        total = dict[str, float]()
        for other in of:
            for what, n in given[other].items():
                was = total.get(what, 0.0)
                total[what] = max(was, n) if what == "rows" else was + n
        given[name] = total


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


@contextmanager
def passes_of(name: str, module: nn.Module) -> Iterator[None]:
    """Note the rows that a module reads in the ``with`` block as the passes of an arm.

    Parameters
    ----------
    name : str
        The arm of the study that runs.
    module : nn.Module
        A batch counts as many passes as it has rows.
    """
    rows: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        rows.append(len(batch))

    hook = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with part(name):
            yield
            note(passes=sum(rows))
    finally:
        hook.remove()


def unequal(one: str, two: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Return, for each resource that two arms have unequally, the first arm's over the second's.

    Of an arm without an update, which is not trained, the updates alone are compared.

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
    noted = [{w for w in GIVEN if f"{SEPARATOR}{name} | {w}" in figures} for name in (one, two)]
    for name, own in zip((one, two), noted, strict=True):
        if not own:
            raise LookupError(f"expected what the arm {name!r} was given, got nothing")
    first, second = (
        {what: figures[f"{SEPARATOR}{name} | {what}"] for what in own}
        for name, own in zip((one, two), noted, strict=True)
    )
    if 0.0 in (first.get("updates"), second.get("updates")):
        ratios = {"updates": _ratio(first.get("updates", 0.0), second.get("updates", 0.0))}
    elif lone := noted[0] ^ noted[1]:
        raise LookupError(
            f"expected {', '.join(sorted(lone))} of the arms {one!r} and {two!r}, got one of them"
        )
    else:
        ratios = {what: _ratio(first[what], second[what]) for what in GIVEN if what in first}
    return {what: ratio for what, ratio in ratios.items() if abs(ratio - 1) > EQUAL}


def _ratio(one: float, two: float) -> float:
    return 1.0 if one == two else one / two if two else math.inf


def unsaid(sentence: str, differences: Mapping[str, float]) -> list[str]:
    """Return the resources in which arms differ without a word of it in the sentence."""

    def said(what: str) -> bool:
        untrained = what == "updates" and differences[what] in (0.0, math.inf)
        words = f"{GIVEN[what]}|{TRAINED}" if untrained else GIVEN[what]
        return re.search(rf"(?i)\b({words})\b", sentence) is not None

    return [what for what in differences if not said(what)]
