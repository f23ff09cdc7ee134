"""Losses at sites named on the command line, and the inputs that each of them needs."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import sonde.train
from sonde.core.errors import InputError, near
from sonde.run.instruments.families import snake_case
from sonde.run.instruments.words import parse_methods

GIVEN = ("x", "y", "probs", "label")
"""Inputs that the command can pass to a loss: rows of one or two sites, attention maps, labels."""


@dataclass(frozen=True)
class Listed:
    """Inputs and purpose of a loss.

    Parameters
    ----------
    word : str
    needs : tuple of str
        Arguments of its forward without a default; of a layer the parameters to type.
    purpose : str
        First line of its docstring.
    has_value : bool, default=True
        Whether there is a value to report, not only a change of states.
    """

    word: str
    needs: tuple[str, ...]
    purpose: str
    has_value: bool = True

    @property
    def is_usable(self) -> bool:
        """True if the command can supply the loss's inputs and report its value."""
        return self.has_value and set(self.needs) <= set(GIVEN)


def listed() -> list[Listed]:
    """Return all losses of ``sonde.train``, in alphabetical order."""
    entries = [
        Listed(word, _needs(kind), (inspect.getdoc(kind) or "").split("\n")[0], _has_value(kind))
        for word, kind in _kinds().items()
    ]
    return sorted(entries, key=lambda one: one.word)


def weights_of(words: str, n_losses: int) -> float | tuple[float, ...]:
    """Parse weights, shared by all losses or given for each: ``0.1`` or ``0.1,0.5``.

    Raises
    ------
    InputError
        If a weight is no finite number above 0, or there are too few or too many.
    """
    try:
        weights = tuple(float(word) for word in words.split(","))
    except ValueError:
        raise InputError(
            f"--weight: expected a number, or several as 0.1,0.5, got {words!r}."
        ) from None
    if not all(0 < one < float("inf") for one in weights):
        raise InputError(f"--weight: expected finite numbers above 0, got {words}.")
    if len(weights) not in (1, n_losses):
        raise InputError(
            f"--weight: expected one weight, or one for each of {n_losses} losses, got "
            f"{len(weights)}."
        )
    return weights[0] if len(weights) == 1 else weights


def attached(
    words: str, sites: Sequence[str], *, has_teacher: bool
) -> dict[str | tuple[str, ...], nn.Module]:
    """Return losses by their sites, in the format of ``sonde.training``.

    Parameters
    ----------
    words : str
        ``rate_reduction,align(distance="mse")``.
    sites : sequence of str
        A site for each loss, or one for all. ``a+b`` names both sites of a loss that compares two.
    has_teacher : bool
        Whether the rows to compare with can come from the same site of a teacher.

    Raises
    ------
    InputError
        If a loss is unknown, needs what the command cannot give, or sites do not match.
    """
    kinds = _kinds()

    def find(word: str) -> type[nn.Module]:
        if word not in kinds:
            words = ", ".join(one.word for one in listed() if one.is_usable)
            raise InputError(
                f"--terms: no loss is called {word!r}.{near(word, kinds)} Known: {words}."
            )
        _require_usable(word, kinds[word])
        return kinds[word]

    losses: list[nn.Module] = parse_methods(words, find)
    if len(sites) not in (1, len(losses)):
        raise InputError(
            f"--sites: expected one site, or one for each of {len(losses)} losses, got "
            f"{len(sites)}."
        )
    each = list(sites) * (len(losses) if len(sites) == 1 else 1)
    losses_at: dict[str | tuple[str, ...], nn.Module] = {}
    for loss, site in zip(losses, each, strict=True):
        key = _key(loss, site, has_teacher)
        if key in losses_at:
            raise InputError(
                f"--terms: two losses read {site}. Give each a site of its own, or train with "
                "sonde.training in Python."
            )
        losses_at[key] = loss
    return losses_at


def _require_usable(word: str, kind: type[nn.Module]) -> None:
    """Raise if the command cannot call a loss, or the loss has no value."""
    if missing := [name for name in _needs(kind) if name not in GIVEN]:
        raise InputError(
            f"--terms: {word} needs {', '.join(missing)}, which this command cannot give. Use "
            "sonde.training in Python."
        )
    if not _has_value(kind):
        raise InputError(
            f"--terms: {word} changes states and has no value to report. Use sonde.training in "
            "Python."
        )


def _key(loss: nn.Module, site: str, has_teacher: bool) -> str | tuple[str, ...]:
    """Return the site or sites of one loss."""
    word, needs = snake_case(type(loss).__name__), _needs(type(loss))
    pair = tuple(site.split("+"))
    if "y" not in needs:
        if len(pair) > 1:
            raise InputError(f"--sites: {word} reads one site, got {site}.")
        return f"{site}:probs" if "probs" in needs and ":" not in site else site
    if len(pair) == 2:
        return pair
    if len(pair) > 2 or not has_teacher:
        raise InputError(
            f"--sites: {word} compares two sites. Write SITE+SITE, or name a teacher model with "
            "--teacher."
        )
    return site, f"teacher:{site}"


def _needs(kind: type[nn.Module]) -> tuple[str, ...]:
    parameters: Mapping[str, Any] = inspect.signature(kind.forward).parameters
    empty = inspect.Parameter.empty
    needs = tuple(n for n, p in parameters.items() if n != "self" and p.default is empty)
    return needs + ("view",) * (getattr(kind, "least_views", 1) > 1)


def _has_value(kind: type[nn.Module]) -> bool:
    """Return whether a module computes a loss, rather than only changing states."""
    return getattr(kind, "has_loss", True)


def _kinds() -> dict[str, type[nn.Module]]:
    """Return the losses of the train family by their words: modules that can be called."""
    members = {name: getattr(sonde.train, name) for name in sonde.train.__all__}
    return {
        snake_case(name): kind
        for name, kind in members.items()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.forward is not nn.Module.forward
    }
