"""The re-iterable ``Stream`` of batches."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from sonde.core._shown import OneLine, html_table, places
from sonde.core.batch import Batch, SiteSchema
from sonde.core.columns import Columns
from sonde.core.errors import InputError
from sonde.core.left_out import LeftOut
from sonde.core.plan import UNIT_SIZE, unit_bounds
from sonde.core.wording import plural

if TYPE_CHECKING:
    from sonde.engine.array_stream import ArrayStream


class Stream(OneLine, ABC):
    """A re-iterable source of batches: a live model, rows on disk, or plain arrays.

    Instruments cannot tell which. A stream is lazy: nothing runs before it is iterated.
    """

    seed: int = 0

    @property
    @abstractmethod
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows in batches, in order of execution."""

    @property
    @abstractmethod
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example in the planned order; without groups, its own key."""

    @property
    @abstractmethod
    def grouped(self) -> bool:
        """True if a group column was given, or examples are pairs or chunks."""

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The example of each entry, if the rows of an example may be separated; else None.

        Entries are then single rows, as in plain arrays.
        """
        return None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number; empty if classes have no names."""
        return ()

    @property
    def own_labels(self) -> bool:
        """True if the data's class numbers are known to be the model's class numbers."""
        return False

    @property
    def labels_number_outputs(self) -> bool:
        """True if the labels, in their order, name the outputs of a model without names."""
        return False

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of one unit, the examples ``[start, stop)`` of the planned order.

        Batches of a unit are cut the same way each time, so a unit's states are reproducible.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return JSON that identifies model, data and reading, for plans and headers."""

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of each example's data item; None if unknown."""
        return None

    @property
    def behaviour(self) -> dict[str, Any] | None:
        """States of a few drawn inputs, by which the model is recognised; None if unknown."""
        return None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Sites that are not read by default, each with the reason."""
        return ()

    @property
    def clearance(self) -> tuple[str, ...]:
        """Access labels of the reader: only states whose labels are among them may be used."""
        return ()

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the starts of the units, and the end; stores keep the units of their files."""
        return unit_bounds(self.group_keys, unit_size)

    def __len__(self) -> int:
        return len(self.group_keys)

    def __repr__(self) -> str:
        sites = places([f"{site.key} ({site.dim})" for site in self.schema])
        return f"{type(self).__name__}({plural(len(self), 'example')}, {sites})"

    def _repr_html_(self) -> str | None:
        title = f"{type(self).__name__}: {plural(len(self), 'example')}"
        columns = ("site", "rows", "dim", "dtype", "module")
        facts = [(s.site, s.reducer.name, s.dim, s.dtype, s.module) for s in self.schema]
        return html_table(title, columns, facts, len(facts))

    def __getitem__(self, index: Any) -> Any:
        """Raise: a stream is read in batches.

        Raises
        ------
        InputError
            With what to write for a ``DataLoader``.
        """
        raise InputError(
            f"{type(self).__name__}: a stream has no items by number; it is iterated in batches of "
            "rows. For a DataLoader write: found = sonde.gather(stream); "
            "DataLoader(TensorDataset(found.rows[site], found.label), batch_size=64, shuffle=True)."
        )

    def __iter__(self) -> Iterator[Batch]:
        bounds = self.units()
        for start, stop in itertools.pairwise(bounds):
            yield from self.batches(start, stop)

    def first_batch(self) -> Batch:
        """Return a batch of two examples, since some normalisation layers reject a single one.

        The batch has one example if the data have only one.

        Raises
        ------
        InputError
            If no example can be read.
        """
        for start in range(0, len(self), 2):
            for batch in self.batches(start, min(start + 2, len(self))):
                return batch
        raise InputError("Stream: no item of the data can be read.")

    @staticmethod
    def of(
        x: Any, *, label: Any = None, seed: int = 0, **columns: Unpack[Columns]
    ) -> "ArrayStream":
        """Return a stream of plain arrays.

        Parameters
        ----------
        x : array (row, dim), or mapping of name to array
            Rows of one site (named ``x``), or of several sites over the same examples.
        label : ints (row,), optional
            Classes; -1 = none.
        seed : int, default=0
            Key of the hash of rows.
        **columns : optional
            What comes with the rows, see ``Columns``.
        """
        from sonde.engine.array_stream import array_stream

        return array_stream(x, columns, label, seed)
