"""One attached loss: the places that it reads and changes, its weight and its columns."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sonde.core.autocast import devices_of, narrow_weight, widened, without_autocast
from sonde.core.errors import InputError
from sonde.core.schedule import Constant, Schedule
from sonde.core.site import Reducer
from sonde.tap.training.place import Changing, Place
from sonde.tap.training.places import Places
from sonde.tap.training.ranks import rows_are_gathered

Key = str | tuple[str, ...]
Weight = float | Schedule
Weights = Weight | Sequence[Weight]
Reduced = str | Reducer | None
AUTO = "auto"
"""A loss says itself how it takes states, by an attribute ``reducer``; else their mean."""


@dataclass(eq=False)
class Term:
    """A loss with the positions that it reads, the place that it changes, and its weight.

    ``n_values`` counts the batches on which it was computed, ``n_missed`` the successive batches
    since then that were too small for it.
    """

    name: str
    loss: nn.Module
    places: tuple[Place, ...]
    changed: Place | None
    schedule: Schedule
    n_values: int = 0
    n_missed: int = 0

    @property
    def has_value(self) -> bool:
        """True if the term has a loss, not only a change of states."""
        return not isinstance(self.loss, Changing) or self.loss.has_loss

    def value(self, given: dict[str, Any], loss: nn.Module | None = None) -> Any:
        """Return the loss of rows and columns in float32 or wider, also under autocast.

        A loss whose own weights have a half type computes as the code around it says.

        Parameters
        ----------
        given : dict of str to object
            Arguments by name.
        loss : nn.Module, optional
            A copy of the loss, to call in its place.
        """
        called = self.loss if loss is None else loss
        with rows_are_gathered():
            if narrow_weight(called) is not None:
                return called(**given)
            with without_autocast(*devices_of(given)):
                return called(**widened(given))

    def told(self, name: str, default: Any) -> Any:
        """Return a loss's attribute (``batching``, ``memory``, ``step``), or the default."""
        return getattr(self.loss, name, default)


def made_term(
    places: Places,
    key: Key,
    loss: nn.Module,
    weight: Weight,
    reducer: Reduced | Mapping[Any, Reduced],
) -> Term:
    """Return an entry of the user's mapping as a term with its positions."""
    if not isinstance(loss, nn.Module):
        raise InputError(
            f"training: expected a module as the loss at {key!r}, got {type(loss).__name__}."
        )
    patterns = (key,) if isinstance(key, str) else key
    given = _of(key, reducer, "reducer")
    given = getattr(loss, "reducer", "mean") if given == AUTO else given
    how = Reducer(given) if isinstance(given, str) else given
    changed = None
    if isinstance(loss, Changing) and getattr(loss, "in_forward", True):
        changed = places.add(patterns[0], how, loss)
    read = patterns if changed is None else patterns[1:]
    read_places = tuple(places.add(pattern, how) for pattern in read)
    if changed is not None and getattr(loss, "reads_changed", False):
        read_places = (places.add(patterns[0], how, before=True), *read_places)
    schedule = weight if isinstance(weight, Schedule) else Constant(float(weight))
    names = dict.fromkeys(place.name for place in (changed, *read_places) if place is not None)
    return Term(f"{type(loss).__name__}({', '.join(names)})", loss, read_places, changed, schedule)


def _of(key: Key, given: Any, name: str) -> Any:
    """Return the value given for a key, alone or in a mapping."""
    if not isinstance(given, Mapping):
        return given
    if key not in given:
        raise InputError(
            f"training: expected {name} for {key!r}, got {name} for {list(given)} only."
        )
    return given[key]


def listed(losses: nn.Module | Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Return the losses at a site as a list."""
    return [losses] if isinstance(losses, nn.Module) else losses


def weights_of(
    key: Key, losses: Sequence[nn.Module], weight: Weights | Mapping[Any, Weights]
) -> list[Weight]:
    """Return the weight of each loss at a site.

    Raises
    ------
    InputError
        If there is no weight for a loss, or it is not finite.
    """
    given: Any = _of(key, weight, "weight")
    each: list[Any] = list(given) if isinstance(given, Sequence) else [given] * len(losses)
    if len(each) != len(losses):
        raise InputError(
            f"training: expected a weight for each of {len(losses)} losses at {key!r}, got "
            f"{len(each)}."
        )
    for one in each:
        if not isinstance(one, Schedule) and not math.isfinite(one):
            raise InputError(f"training: expected a finite weight at {key!r}, got {one}.")
    return each


def finite_weight(term: Term, step: int) -> float:
    """Return the weight of a loss at a step.

    Raises
    ------
    InputError
        If a schedule gives NaN or infinity.
    """
    weight = term.schedule.weight(step)
    if not math.isfinite(weight):
        raise InputError(
            f"training: the weight of the loss {term.name} is {weight} at step {step}. Correct its "
            f"schedule {term.schedule!r}."
        )
    return weight


def check_column(term: Term, name: str, column: Any, n: int) -> None:
    """Raise if a column has the wrong length or invalid class labels."""
    if not isinstance(column, Tensor) or not column.ndim or len(column) != n:
        has_entries = isinstance(column, Tensor) and column.ndim
        got = f"{len(column)} entries" if has_entries else f"a single {type(column).__name__}"
        raise InputError(
            f"training: expected a tensor with an entry of {name} for each of {n} rows of the loss "
            f"{term.name}, got {got}."
        )
    if name != "label" or not _takes_classes(term.loss):
        return
    if column.is_floating_point():
        raise InputError(
            f"training: expected whole numbers as label of the loss {term.name}, got "
            f"{column.dtype}."
        )
    many = column.ndim == 2 and column.shape[1] > 1 and _takes_many(term.loss)
    if column.ndim > 1 and not many:
        more = "Pass label[:, 0]" if column.shape[1:] == (1,) else "Pass one class for each row"
        raise InputError(
            f"training: expected labels of shape ({n},) for the loss {term.name}, got "
            f"{tuple(column.shape)}. {more}."
        )


def _takes_many(loss: nn.Module) -> bool:
    """Return whether a loss's annotation declares a matrix of labels, a column for each class."""
    annotation = inspect.signature(loss.forward).parameters["label"].annotation
    return any(len(getattr(one, "dims", ())) == 2 for one in get_args(annotation))


def _takes_classes(loss: nn.Module) -> bool:
    """Return whether a loss's annotation declares that labels are integers."""
    annotation = inspect.signature(loss.forward).parameters["label"].annotation
    kinds = [
        kind for one in (annotation, *get_args(annotation)) for kind in getattr(one, "dtypes", ())
    ]
    return any("int" in str(kind) for kind in kinds) and not any("float" in str(k) for k in kinds)


def repeated(column: Any, n: int, n_views: int) -> Any:
    """Return a column of one view's examples, repeated for the rows of all views."""
    if isinstance(column, Tensor) and column.ndim and len(column) * n_views == n and n_views > 1:
        return torch.cat([column] * n_views)
    return column
