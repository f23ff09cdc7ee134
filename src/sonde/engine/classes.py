"""Renumbers the classes of two data sets so that equal names have equal numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream

Names = tuple[str, ...]


def joined_names(a: Sequence[str], b: Sequence[str]) -> Names | None:
    """Return the class names of both data sets, or None if names and numbers conflict.

    A class that is named by its own number, such as ``"2"`` at number 2, has no name: it agrees
    with any name there that is not a number.

    Parameters
    ----------
    a, b : sequence of str
        The name of each class number.

    Returns
    -------
    tuple of str or None
        None if a number has two names, or a name has two numbers.

    Examples
    --------
    >>> joined_names(("cat", "dog"), ("cat", "dog", "fox"))
    ('cat', 'dog', 'fox')
    >>> joined_names(("cat", "dog"), ("dog", "cat")) is None
    True
    >>> joined_names(("cat", "dog"), ("0", "1", "2"))
    ('cat', 'dog', '2')
    >>> joined_names(("7", "9"), ("0", "1")) is None
    True
    """
    both = min(len(a), len(b))
    number_in_b = _numbers(b)
    if any(number_in_b.get(name, number) != number for name, number in _numbers(a).items()):
        return None
    joined: list[str] = []
    for number, (own, its) in enumerate(zip(a, b, strict=False)):
        if own != its and not _stands_for(number, own, its):
            return None
        joined.append(its if own == str(number) else own)
    return (*joined, *a[both:], *b[both:])


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Return the first number of each name."""
    return {name: number for number, name in reversed([*enumerate(names)])}


def _stands_for(number: int, mine: str, its: str) -> bool:
    """Return whether one of two names is just the class number, and the other a real name."""
    return str(number) in (mine, its) and not (_is_number(mine) and _is_number(its))


def _is_number(name: str) -> bool:
    return name.lstrip("+-").isdecimal()


def with_classes(stream: Stream, names: Sequence[str]) -> Stream:
    """Return a stream with the class numbers of ``names``; its other names follow them.

    Parameters
    ----------
    stream : Stream
    names : sequence of str
        The name of each class number in the other data set; empty if its names are not known.
    """
    if not names or joined_names(names, stream.label_names) is not None:
        return stream
    return RenumberedStream(stream, names)


def renumbered(
    label: Int[Tensor, "example"], own: Sequence[str], names: Sequence[str]
) -> Int[Tensor, "example"]:
    """Return class numbers of ``own`` names, numbered as by ``with_classes``."""
    if not names or joined_names(names, own) is not None:
        return label
    return _numbering(names, own)[1][label]


def _numbering(names: Sequence[str], own: Sequence[str]) -> tuple[Names, Int[Tensor, "class"]]:
    """Return all names, and the new number of each own class, with -1 for no class at the end."""
    every = (*names, *(name for name in dict.fromkeys(own) if name not in names))
    return every, torch.tensor([*map(every.index, own), -1])


@final
class RenumberedStream(DerivedStream):
    """A stream whose classes are numbered as in another data set.

    Parameters
    ----------
    inner : Stream
    names : sequence of str
        As in ``with_classes``.
    """

    def __init__(self, inner: Stream, names: Sequence[str]) -> None:
        self.inner, self.seed = inner, inner.seed
        self._names, self._number = _numbering(names, inner.label_names)

    @property
    def label_names(self) -> Names:
        """The name of each class number."""
        return self._names

    @property
    def own_labels(self) -> bool:
        """False: the class numbers were taken from another stream."""
        return False

    @property
    def labels_number_outputs(self) -> bool:
        """False: the class numbers were taken from another stream."""
        return False

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with the class numbers of ``names``."""
        return replace(batch, label=self._number[batch.label])
