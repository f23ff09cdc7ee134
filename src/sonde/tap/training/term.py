"""One loss that is attached: the places that it reads and changes, its weight, and its columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.autocast import devices_of, narrow_weight, widened, without_autocast
from sonde.core.errors import InputError
from sonde.core.schedule import Constant, Schedule
from sonde.core.site import Reducer
from sonde.tap.training.places import Changing, Place, Places

Key = str | tuple[str, ...]
Weight = float | Schedule
Reduced = str | Reducer | None
AUTO = "auto"
"""A loss says itself how it takes states, by an attribute ``reducer``; else their mean."""


@dataclass(eq=False)
class Term:
    """A loss, the places that it reads, the place that it changes, and its weight."""

    name: str
    loss: nn.Module
    places: tuple[Place, ...]
    changed: Place | None
    schedule: Schedule

    @property
    def has_value(self) -> bool:
        """Whether there is a loss, not only a change of states."""
        return not isinstance(self.loss, Changing) or self.loss.has_loss

    def value(self, given: dict[str, Any], loss: nn.Module | None = None) -> Any:
        """Return the loss of rows and columns, in float32 or wider also under autocast.

        A loss whose own weights have a half type computes as the code around it says.

        Parameters
        ----------
        given : dict of str to object
            Arguments by name.
        loss : nn.Module, optional
            A copy of the loss, to call in its place.
        """
        called = self.loss if loss is None else loss
        if narrow_weight(called) is not None:
            return called(**given)
        with without_autocast(*devices_of(given)):
            return called(**widened(given))

    def told(self, name: str, default: Any) -> Any:
        """Return an attribute of a loss (``batching``, ``memory``, ``step``), or the default."""
        return getattr(self.loss, name, default)


def made_term(
    places: Places,
    key: Key,
    loss: nn.Module,
    weight: Weight | Mapping[Any, Weight],
    reducer: Reduced | Mapping[Any, Reduced],
) -> Term:
    """Return one entry of the user's mapping with its places."""
    if not isinstance(loss, nn.Module):
        raise InputError(
            f"training: expected a module as the loss at {key!r}, got {type(loss).__name__}."
        )
    patterns = (key,) if isinstance(key, str) else key
    given = _of(key, reducer, "reducer")
    given = getattr(loss, "reducer", "mean") if given == AUTO else given
    how = Reducer(given) if isinstance(given, str) else given
    changed = places.add(patterns[0], how, loss) if isinstance(loss, Changing) else None
    read = patterns if changed is None else patterns[1:]
    found = tuple(places.add(pattern, how) for pattern in read)
    own = _of(key, weight, "weight")
    schedule = own if isinstance(own, Schedule) else Constant(float(own))
    told = [place.name for place in (changed, *found) if place is not None]
    return Term(f"{type(loss).__name__}({', '.join(told)})", loss, found, changed, schedule)


def _of(key: Key, given: Any, name: str) -> Any:
    """Return what was given for a key, alone or in a mapping."""
    if not isinstance(given, Mapping):
        return given
    if key not in given:
        raise InputError(f"training: expected {name} for {key!r}, got it for {list(given)}.")
    return given[key]


def check_column(loss: str, name: str, column: Any, n: int) -> None:
    """Refuse a column of rows that has another length, or labels that are no whole numbers."""
    if not isinstance(column, Tensor) or len(column) != n:
        got = f"{len(column)} entries" if isinstance(column, Tensor) else type(column).__name__
        raise InputError(
            f"training: expected a tensor with an entry of {name} for each of {n} rows of the loss "
            f"{loss}, got {got}."
        )
    if name == "label" and column.is_floating_point():
        raise InputError(
            f"training: expected whole numbers as label of the loss {loss}, got {column.dtype}."
        )


def repeated(column: Any, n: int, n_views: int) -> Any:
    """Return a column of one view's examples for the rows of all views."""
    if isinstance(column, Tensor) and column.ndim and len(column) * n_views == n and n_views > 1:
        return torch.cat([column] * n_views)
    return column
