"""Turn label values into class indices, matched with the model's class names."""

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sonde.data.numbers import as_number
from sonde.data.sources import is_missing

MAX_LABELS = 1024
NONE = -1

_GENERIC = re.compile(r"^LABEL_\d+$")
_WHOLE = re.compile(r"^([+-]?\d{1,18})(\.0*)?$")


@dataclass(frozen=True)
class Labels:
    """The class index of each item (-1 = no label).

    Parameters
    ----------
    values : Int[np.ndarray, "item"]
        Class index of each item; -1 for no label.
    names : tuple of str
        The name of each class number.
    own : bool
        Whether the numbers are the model's own.
    reason : str
        Why a column gives no label, or why the numbers are, or are not, the model's own.
    numbers : Float[np.ndarray, "item"] or None
        The values of a column of numbers; NaN if a value is missing.
    several : bool
        Whether an item has several values, or a map of them.
    """

    values: Int[np.ndarray, "_item"]
    names: tuple[str, ...] = ()
    own: bool = True
    reason: str = ""
    numbers: Float[np.ndarray, "_item"] | None = None
    several: bool = False

    @property
    def any(self) -> bool:
        """True if at least one item has a label."""
        return bool((self.values != NONE).any())


class LabelColumn:
    """Collects the distinct values of a label column."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}
        self._items: list[int] = []
        self._numbers = array("d")
        self._is_of_numbers = True
        self._holds_several = False
        self._hot: set[int] = set()

    def add(self, value: Any) -> None:
        """Add the next item's value; a column of shape (n, 1) has one value per item.

        A one-hot row stands for its class, if all rows of the column are one-hot.
        """
        value = _alone(value)
        if holds_several(value):
            hot = one_hot_class(value)
            self._hot.add(-1 if hot is None else len(value))
            self._holds_several, value = True, hot
        elif not is_missing(value):
            self._hot.add(0)
        number = None if is_missing(value) else as_number(value)
        value = _clean(value)
        self._numbers.append(math.nan if number is None else number)
        self._is_of_numbers &= value is None or number is not None
        if value is None:
            self._items.append(NONE)
        elif len(self._codes) <= MAX_LABELS:
            key = (type(value).__name__, value)
            self._items.append(self._codes.setdefault(key, len(self._codes)))
        else:
            self._items.append(NONE)

    def finish(
        self,
        id2label: Mapping[int, str] | None,
        names: Sequence[str] | None,
        column: str,
        new_classes: bool = False,
        is_told: bool = False,
    ) -> Labels:
        """Return the class indices.

        Parameters
        ----------
        id2label : mapping or None
            The model's names, if it is a classifier.
        names : sequence of str or None
            What the data's own integers stand for.
        column : str
            For messages.
        new_classes : bool, default=False
            Number labels that the model has no class for after the model's classes, if at least one
            label has a class.
        is_told : bool, default=False
            Whether the user named the classes: then labels may be new even if none has a class.
        """
        codes = np.asarray(self._items, dtype=np.int64)
        values = [v for _, v in self._codes]
        empty = np.full(len(codes), NONE, dtype=np.int64)
        if self._holds_several and (len(self._hot) > 1 or -1 in self._hot):
            reason = f"column {column!r} holds several values for an item, so it is not a label"
            return Labels(empty, (), True, reason, several=True)
        of_numbers = self._is_of_numbers and len(values) > 0
        given = np.frombuffer(self._numbers, dtype=np.float64) if of_numbers else None
        if of_numbers and any(map(_is_fraction, values)):
            reason = f"column {column!r} holds numbers that are not whole, so it is not a label"
            return Labels(empty, (), True, reason, given)
        if len(values) > MAX_LABELS:
            reason = f"column {column!r} has more than {MAX_LABELS:,} values, so it is not a label"
            return Labels(empty, (), True, reason, given)
        numbers, label_names, own = _numbered(values, id2label, names, new_classes, is_told)
        lookup = np.asarray([*numbers, NONE], dtype=np.int64)
        reason = "" if own else f"the labels in column {column!r} are not the model's own classes"
        return Labels(lookup[codes], label_names, own, reason, given)


def _numbered(
    values: list[Any],
    id2label: Mapping[int, str] | None,
    names: Sequence[str] | None,
    new_classes: bool,
    is_told: bool,
) -> tuple[list[int], tuple[str, ...], bool]:
    if id2label is not None:
        own = tuple(str(id2label[i]) for i in sorted(id2label))
        matched = _matched(values, id2label, names)
        if None not in matched:
            return [i for i in matched if i is not None], own, True
        if new_classes and (is_told or any(i is not None for i in matched)):
            new = {v: _shown(v, names) for v, i in zip(values, matched, strict=True) if i is None}
            every = (*own, *sorted(set(new.values())))
            numbers = [
                every.index(new[v], len(own)) if i is None else i
                for v, i in zip(values, matched, strict=True)
            ]
            return numbers, every, True
    shown = [_shown(v, names) for v in values]
    numbers = [n for n in map(_whole, values) if n is not None and 0 <= n < MAX_LABELS]
    if id2label is None and len(numbers) == len(values):
        shown_of = {n: s for n, s in zip(numbers, shown, strict=True)}
        width = max([*numbers, len(names or ()) - 1], default=-1) + 1
        return numbers, tuple(shown_of.get(i) or _shown(i, names) for i in range(width)), True
    order = sorted(set(shown), key=lambda s: (0, int(s), s) if _whole(s) is not None else (1, 0, s))
    return [order.index(s) for s in shown], tuple(order), False


def _matched(
    values: list[Any], id2label: Mapping[int, str], names: Sequence[str] | None
) -> list[int | None]:
    """Return the model's class of each value, or None for a value without one."""
    by_name = {str(name).strip().casefold(): int(i) for i, name in id2label.items()}
    named = names is not None
    generic = all(_GENERIC.match(str(name)) for name in id2label.values())
    matched: list[int | None] = []
    for value in values:
        text = _shown(value, names) if named else str(value)
        number = by_name.get(text.casefold()) if named or isinstance(value, str) else None
        if number is None and (generic or not named):
            whole = _whole(value)
            number = whole if whole in id2label else None
        matched.append(number)
    return matched


def holds_several(value: Any) -> bool:
    """Return whether a label has several values: a list, an array or a mapping."""
    return isinstance(value, list | tuple | Mapping) or getattr(value, "ndim", 0) > 0


def one_hot_class(value: Any) -> int | None:
    """Return the place of the only 1 among zeros, None for any other value.

    Examples
    --------
    >>> one_hot_class([0, 0, 1]), one_hot_class([0.5, 0.5]), one_hot_class([1, 1])
    (2, None, None)
    """
    if isinstance(value, Mapping):
        return None
    try:
        row = np.asarray(value)
    except (TypeError, ValueError):
        return None
    if row.ndim != 1 or len(row) < 2 or row.dtype.kind not in "biuf":
        return None
    is_hot = np.count_nonzero(row) == 1 and row.max() == 1
    return int(row.argmax()) if is_hot else None


def _alone(value: Any) -> Any:
    """Return the entry of a list or array of length 1, else the value."""
    if isinstance(value, list | tuple):
        return _alone(value[0]) if len(value) == 1 else value
    if getattr(value, "ndim", 0) > 0 and math.prod(value.shape) == 1:
        return value.reshape(-1)[0].item()
    return value


def _clean(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        value = value.strip()
    if is_missing(value):
        return None
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    value = value if isinstance(value, int | float) else str(value)
    return None if _whole(value) == NONE else value


def _whole(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    match = _WHOLE.match(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def _is_fraction(value: Any) -> bool:
    return _whole(value) is None and as_number(value) is not None


def _shown(value: Any, names: Sequence[str] | None) -> str:
    whole = _whole(value)
    if names is not None and whole is not None and 0 <= whole < len(names):
        return str(names[whole])
    match = _WHOLE.match(value) if isinstance(value, str) else None
    return match[1] if match else str(value)
