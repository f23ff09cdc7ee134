"""Python objects as rows: lists, map-style data sets, and anything that can be iterated twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch

from sonde.core.errors import InputError
from sonde.data.sources import Row, Source, Walk


@final
@dataclass(frozen=True)
class Tuples:
    """What the members of items that are tuples are: tensors of ``forward``, and a label.

    A last member that may be a label is one where ``forward`` has no tensor left for it. Where it
    has one that may be left out, nothing but the user can tell.

    Parameters
    ----------
    arguments : dict of str to bool
        The tensors that ``forward`` takes, in order, and whether it must be given them; none where
        a processor makes them.
    label : str or None
        The column that the user calls the label.
    """

    arguments: Mapping[str, bool] = field(default_factory=dict)
    label: str | None = None

    def row(self, item: tuple[Any, ...], index: int) -> Row | None:
        """Return the members of an item by name; None where they fit nothing.

        Raises
        ------
        InputError
            If the last member may be a label, or an argument that may be left out.
        """
        names, last = list(self.arguments), len(item) - 1
        name = names[last] if last < len(names) else None
        is_label = last > 0 and _is_label(item[last])
        if is_label and name is not None and not self.arguments[name] and self.label is None:
            raise InputError(
                f"item {index}: expected to know what the last of {last + 1} values is: {name!r} "
                "of forward, or the label. Pass dictionaries that name each value, or "
                'label_column="label" if it is the label.'
            )
        if is_label and (name is None or not self.arguments[name]):
            name = "label"
        if last == 1 and name == "label":
            return {**as_row(item[0], index), "label": _plain(item[1])}
        if name is None or last > len(names):
            return None
        return dict(zip([*names[:last], name], map(_plain, item), strict=True))


PAIRS = Tuples()


@final
class Iterated(Source):
    """The items of a re-iterable: one item is one example without a batch axis."""

    rows_differ = True

    def __init__(self, items: Any, tuples: Tuples = PAIRS) -> None:
        self.name, self._tuples = type(items).__name__, tuples
        items = self._items = _checked(_rows_of_table(items))
        self._by_index = isinstance(items, Sequence) or not isinstance(items, Iterable)
        self._walk = Walk(self.rows)

    def rows(self) -> Iterator[Row]:
        """Yield each item as a row of named values."""
        source = self._indexed() if not isinstance(self._items, Iterable) else self._items
        for i, item in enumerate(source):
            yield as_row(item, i, self._tuples)

    def take(self, start: int, stop: int) -> list[Row]:
        """Return items by index, or walk to them."""
        if self._by_index:
            return [as_row(self._items[i], i, self._tuples) for i in range(start, stop)]
        return self._walk.take(start, stop, self.name)

    def _indexed(self) -> Iterator[Any]:
        for i in range(len(self._items)):
            yield self._items[i]


@final
class ArrayRows(Source):
    """An array whose first axis counts the items."""

    def __init__(self, x: Any, name: str, columns: Mapping[str, Any] | None = None) -> None:
        self.name, self._x = name, x
        self._columns = dict(columns or {})
        if np.ndim(x) == 0:
            raise InputError(
                f"{name}: expected an array with one row per item, got a single number."
            )

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        for i in range(len(self._x)):
            yield self._row(i)

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some rows."""
        return [self._row(i) for i in range(start, stop)]

    def _row(self, i: int) -> Row:
        values = {k: _plain(v[i]) for k, v in self._columns.items()}
        return {
            "x": np.asarray(self._x[i]) if isinstance(self._x, np.ndarray) else self._x[i]
        } | values


def as_row(item: Any, index: int, tuples: Tuples = PAIRS) -> Row:
    """Return the named values of one item: ``text``, ``image``, ``x``, or the item's own names.

    Raises
    ------
    InputError
        If the item is of no kind that a model reads.
    """
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, torch.Tensor | np.ndarray):
        return {"x": item}
    if hasattr(item, "getexif"):
        return {"image": item}
    is_ids = isinstance(item, list | tuple) and item and all(isinstance(v, int) for v in item)
    if isinstance(item, tuple) and (len(item) == 2 or not is_ids):
        found = tuples.row(item, index)
        if found is not None:
            return found
    if (
        isinstance(item, list)
        and item
        and all(isinstance(v, Mapping) and "role" in v for v in item)
    ):
        return {"messages": item}
    if is_ids:
        return {"input_ids": list(item)}
    raise InputError(
        f"item {index}: expected a text, an image, a tensor or a dictionary without a batch axis, "
        f"got {type(item).__name__}."
    )


def _is_label(value: Any) -> bool:
    if isinstance(value, str | int | np.integer):
        return True
    return isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_floating_point()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    number = isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0
    return value.item() if number else value


def _rows_of_table(items: Any) -> Any:
    """Return the rows of a table of pandas, Polars or Arrow; anything else as it is.

    Iterated over, a table gives the names of its columns, or the columns.
    """
    if not (hasattr(items, "columns") and (hasattr(items, "dtypes") or hasattr(items, "schema"))):
        return items
    for rows, options in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(items, rows):
            return getattr(items, rows)(*options)
    raise InputError(
        f"data: expected rows, got a {type(items).__name__} with columns. Pass a list of its rows."
    )


def _checked(items: Any) -> Any:
    if isinstance(items, torch.utils.data.DataLoader):
        raise InputError(
            "data: expected items without a batch axis, got a DataLoader. Pass its data set "
            "(loader.dataset); sonde cuts the batches."
        )
    if isinstance(items, Mapping):
        raise InputError(
            "data: expected an iterable of items, got a dictionary. Pass a list of items."
        )
    if isinstance(items, Iterable):
        if iter(items) is items:
            raise InputError(
                f"data: a {type(items).__name__} can be iterated only once, and a run reads its "
                "data "
                "twice. Pass a list, a file, or an object whose __iter__ starts anew."
            )
        return items
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        return items
    raise InputError(
        f"data: expected a path, a name, or an iterable of items, got {type(items).__name__}."
    )
