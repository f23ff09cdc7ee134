"""Python objects as rows: lists, map-style data sets, and anything that can be iterated."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch

from sonde.core.errors import InputError
from sonde.data.labels import holds_several
from sonde.data.sources import Row, Source, Walk
from sonde.data.spooled import Spooled


@final
@dataclass(frozen=True)
class Tuples:
    """Meaning of each member of tuple items: tensors of ``forward``, and a label.

    A last member that may be a label is the label if ``forward`` has no tensor left for it. If the
    tensor that is left is optional, only the user can tell.

    Parameters
    ----------
    arguments : dict of str to bool
        The tensors that ``forward`` takes, in order, and whether each is required; empty if
        a processor makes them.
    label : str or None
        The column that the user calls the label.
    """

    arguments: Mapping[str, bool] = field(default_factory=dict)
    label: str | None = None

    def row(self, item: tuple[Any, ...], index: int) -> Row | None:
        """Return the members of an item by name, or None if they fit no argument.

        Raises
        ------
        InputError
            If the last member may be either a label or an optional argument.
        """
        names, last = list(self.arguments), len(item) - 1
        name = names[last] if last < len(names) else None
        several = last > 0 and holds_several(item[last])
        is_label = (last > 0 and _is_label(item[last])) or (several and self.label is not None)
        if is_label and name is not None and not self.arguments[name] and self.label is None:
            raise InputError(
                f"item {index} has {last + 1} values, and the meaning of the last value is "
                f"unknown: {name!r} of forward, or the label. Pass dictionaries that name each "
                'value, or label_column="label" if it is the label.'
            )
        needed = name is not None and self.arguments[name]
        if (is_label and not needed) or (name is None and several):
            name = "label"
        if last == 1 and name == "label":
            return {**as_row(item[0], index), "label": _plain(item[1])}
        if name is None or last > len(names):
            return None
        return dict(zip([*names[:last], name], map(_plain, item), strict=True))


PAIRS = Tuples()


@final
class Iterated(Source):
    """The items of an iterable; each is an example without batch axis."""

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
        """Return items by index, or by iterating up to them."""
        if self._by_index:
            return [as_row(self._items[i], i, self._tuples) for i in range(start, stop)]
        return self._walk.take(start, stop, self.name)

    def _indexed(self) -> Iterator[Any]:
        for i in range(len(self._items)):
            yield self._items[i]


@final
class ArrayRows(Source):
    """Arrays or lists of equal length by name; the first axis counts the items."""

    def __init__(self, columns: Mapping[str, Any], name: str) -> None:
        self.name, self._columns = name, dict(columns)
        lengths = {k: _length(v) for k, v in self._columns.items()}
        if None in lengths.values() or len(set(lengths.values())) != 1:
            counts = ", ".join(f"{k} {'one value' if n is None else n}" for k, n in lengths.items())
            if lengths == {"x": None}:
                raise InputError(
                    f"{name}: expected an array with one row per item, got a single number."
                )
            raise InputError(
                f"{name}: expected arrays or lists of equal length, one row per item, got "
                f"{counts or 'none'}."
            )
        self._n = next(iter(lengths.values())) or 0

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        for i in range(self._n):
            yield self._row(i)

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some rows."""
        return [self._row(i) for i in range(start, stop)]

    def labels(self, column: str) -> Iterator[Any]:
        """Yield one column."""
        return (_plain(value) for value in self._columns[column])

    def _row(self, i: int) -> Row:
        values = {k: v.iloc[i] if hasattr(v, "iloc") else v[i] for k, v in self._columns.items()}
        return {
            k: np.asarray(v) if k == "x" and isinstance(v, np.ndarray) else _plain(v)
            for k, v in values.items()
        }


def _length(values: Any) -> int | None:
    """Return the number of items in a column, or None for a single value."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
        return None
    return None if getattr(values, "ndim", 1) == 0 else len(values)


def features_and_labels(data: Any) -> Source | None:
    """Return rows of a scikit-learn ``(X, y)``, or None for other data.

    ``X`` is an array of at least two axes, ``y`` holds a label, a number, or an array of labels for
    each of its rows.
    """
    if not (isinstance(data, tuple) and len(data) == 2):
        return None
    x, y = data
    if not (isinstance(x, np.ndarray | torch.Tensor) and x.ndim > 1):
        return None
    if isinstance(y, np.ndarray | torch.Tensor) and y.ndim == 2 and y.shape[1] == 1:
        y = y.reshape(-1)
    one_each = getattr(y, "ndim", 1) >= 1 and _length(y) is not None
    if getattr(y, "shape", None) == x.shape and y.dtype == x.dtype:
        return None  # two items of one shape
    return ArrayRows({"x": x, "label": y}, "(X, y)") if one_each else None


def as_row(item: Any, index: int, tuples: Tuples = PAIRS) -> Row:
    """Return the values of one item by name: ``text``, ``image``, ``x``, or its own names.

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
        row = tuples.row(item, index)
        if row is not None:
            return row
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
    """Return the rows of a pandas, Polars or Arrow table, or other data unchanged.

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


@final
class _Anew:
    """The items of a function that is called again for each pass."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        first = make()
        if not isinstance(first, Iterable) or (first is make() and iter(first) is first):
            raise InputError(
                "data: expected a function that returns a new iterable at each call, got a "
                f"function that returns a {type(first).__name__}. A generator function works."
            )

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def _data_set_of(loader: "torch.utils.data.DataLoader[Any]") -> Any:
    """Return the data set of a loader that only batches; sonde chooses order and batch size."""
    from torch.utils.data import RandomSampler, SequentialSampler, default_collate

    plain = type(loader.sampler) in (RandomSampler, SequentialSampler)
    iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
    if loader.collate_fn is default_collate and (plain or iterable):
        return loader.dataset
    what = "its own collate_fn" if plain or iterable else f"a {type(loader.sampler).__name__}"
    raise InputError(
        f"data: expected items without a batch axis, got a DataLoader with {what}. Pass a data "
        "set whose items are inputs of the model without a batch axis (often loader.dataset)."
    )


def _checked(items: Any) -> Any:
    if isinstance(items, torch.utils.data.DataLoader):
        items = _data_set_of(items)
    if isinstance(items, Iterable):
        if iter(items) is items:
            return Spooled(iter(items))
        return items
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        return items
    if callable(items) and not isinstance(items, type | torch.nn.Module):
        return _Anew(items)
    raise InputError(
        f"data: expected a path, a name, or an iterable of items, got {type(items).__name__}."
    )
