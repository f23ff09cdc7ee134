"""Two data sets as one, labelled by the origin of each item."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, final

from sonde.core.errors import InputError
from sonde.data.columns import IMAGE_NAMES
from sonde.data.opening import open_source
from sonde.data.sources import Row, Source

SIDES = ("negative side", "positive side")
"""Names of the classes 0 and 1, in the order in which names are numbered."""


def contrast(
    positive: Any, negative: Any, split: str = "train", limit: int | None = None
) -> Source:
    """Join two data sets for ``sonde.read``, with label 1 for the first and 0 for the second.

    Parameters
    ----------
    positive : str, path, array, or re-iterable
        Data with label 1; labels of their own are ignored.
    negative : str, path, array, or re-iterable
        Data with label 0; labels of their own are ignored.
    split : str, default="train"
        The split that is read if a data set has several and its name does not choose.
    limit : int, optional
        Take only the first items of each side.

    Raises
    ------
    InputError
        If ``limit`` is below 1, or a side is empty or is a sample of pieces of its texts.

    Examples
    --------
    >>> [row["label"] for row in contrast(["good", "fine"], ["bad"]).rows()]
    [0, 1, 1]
    """
    if limit is not None and limit < 1:
        raise InputError(f"contrast: expected limit of at least 1, got {limit}.")
    sides = _side(negative, "negative", split), _side(positive, "positive", split)
    return _Contrast(*sides, limit)


def _side(data: Any, side: str, split: str) -> Source:
    source, n_picked = open_source(data, split=split)
    if n_picked is not None:
        raise InputError(
            f"contrast: {source.name} is a sample of chunks of texts, which cannot be compared "
            f"with other data. Name {source.name}-all, which contains every chunk, or other data."
        )
    if next(iter(source.rows()), None) is None:
        raise InputError(f"contrast: {source.name}, the {side} side, is empty. Give it items.")
    return source


@final
class _Contrast(Source):
    """The items of the negative side, then those of the positive one."""

    rows_differ = True

    def __init__(self, negative: Source, positive: Source, limit: int | None) -> None:
        self.name = f"{positive.name} against {negative.name}"
        self._sides = (negative, positive)
        self._limit = limit
        self._first = sum(1 for _ in islice(negative.rows(), limit))
        self._one_base = negative.base == positive.base

    @property
    def base(self) -> Path:
        """The folder of both sides, or an empty path if they differ."""
        return self._sides[0].base if self._one_base else Path()

    def rows(self) -> Iterator[Row]:
        """Yield the items of both sides with their labels."""
        for label, side in enumerate(self._sides):
            for row in islice(side.rows(), self._limit):
                yield self._labelled(row, label)
        self.n_bad = sum(side.n_bad for side in self._sides)

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some items of either side or both."""
        n, rows = self._first, list[Row]()
        for label, side, first, last in (
            (0, self._sides[0], start, min(stop, n)),
            (1, self._sides[1], max(start - n, 0), stop - n),
        ):
            if first < last:
                rows += [self._labelled(row, label) for row in side.take(first, last)]
        return rows

    def where(self, index: int) -> str:
        """Return the location of an item for messages, as its side gives it."""
        side, own = self._side_of(index)
        return side.where(own)

    def place(self, index: int) -> str:
        """Return the item's location and side for reports."""
        side, own = self._side_of(index)
        return f"{side.place(own)} of {side.name}"

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the names of both sides."""
        return SIDES if column == "label" else None

    def _side_of(self, index: int) -> tuple[Source, int]:
        is_positive = index >= self._first
        return self._sides[is_positive], index - self._first * is_positive

    def _labelled(self, row: Row, label: int) -> Row:
        if self._one_base:
            return {**row, "label": label}
        base = self._sides[label].base
        moved = {
            name: base / row[name] for name in IMAGE_NAMES if isinstance(row.get(name), str | Path)
        }
        return {**row, **moved, "label": label}
