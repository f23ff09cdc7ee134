"""Rows of a store that a reader may see, by a column of access labels.

This keeps rows apart in what is fitted and scored. It is no access control: whoever may open the
files of a store reads all of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int

from sonde.core.batch import Batch, SiteSchema
from sonde.core.clearance import LABELS
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.store._identity import DATA, data_of, is_of_arrays, without_data
from sonde.store._subset import with_examples
from sonde.store.reading import Store


@final
class Cleared(Stream):
    """The examples of a store whose label is missing or in the reader's clearance.

    Units, groups, samples and hashes are those of the visible examples alone, so rows that the
    reader may not see change nothing, to the byte. What is fitted on these examples carries their
    labels, and only readers who are cleared for all these labels may score with it.

    Parameters
    ----------
    store : Store
    column : str
        Column of the store with a label for each example (``columns=`` of ``write_store``).
    clearance : collection of str
        Labels of the reader.

    Raises
    ------
    InputError
        If the store has no such column, or no example is visible.
    """

    def __init__(self, store: Store, column: str, clearance: Collection[str]) -> None:
        if isinstance(clearance, str):
            raise InputError(f"Cleared: expected a set of labels, got the text {clearance!r}.")
        self.store, self.seed = store, store.seed
        self._clearance = tuple(sorted({str(label) for label in clearance}))
        told = store.column(column)
        allowed = [x is None or str(x) in self._clearance for x in told]
        self._kept = np.flatnonzero(allowed)
        if not len(self._kept):
            raise InputError(
                f"Cleared: expected at least one example whose {column!r} is one of the cleared "
                f"labels ({', '.join(self._clearance) or 'none'}), got none among {len(told):,} "
                "examples."
            )
        self.labels = tuple(sorted({str(told[i]) for i in self._kept if told[i] is not None}))

    @property
    def clearance(self) -> tuple[str, ...]:
        """Access labels of the reader."""
        return self._clearance

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows, in order of execution."""
        return self.store.schema

    @cached_property
    def _group_keys(self) -> tuple[bytes, ...]:
        keys = self.store.group_keys
        return tuple(keys[int(i)] for i in self._kept)

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every visible example."""
        return self._group_keys

    @property
    def grouped(self) -> bool:
        """True if groups were given or examples were cut into chunks."""
        return self.store.grouped

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number."""
        return self.store.label_names

    @property
    def own_labels(self) -> bool:
        """True if the data's class numbers are known to be the model's class numbers."""
        return self.store.own_labels

    @property
    def source_rows(self) -> Int[np.ndarray, "_example"] | None:
        """Index of the data item of each example."""
        found = self.store.source_rows
        return None if found is None else found[self._kept]

    def identity(self) -> dict[str, Any]:
        """Return the identity of the store's model and of the visible examples."""
        whole = self.store.identity()
        told = {name: x for name, x in data_of(whole).items() if name == "encoding"}
        return {
            **without_data(whole),
            DATA: {**told, "cleared": self._content},
            LABELS: list(self.labels),
        }

    @cached_property
    def _content(self) -> str:
        """Return the hash of the visible examples: of their ids, and for arrays of their rows."""
        found, by_rows = blake2b(digest_size=16), is_of_arrays(self.store.identity())
        keys = self.store.column(None)
        for i in self._kept:
            found.update(len(keys[i]).to_bytes(8, "little") + keys[i])
        if by_rows:
            for batch in self:
                for x in batch.rows.values():
                    found.update(x.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the visible examples ``[start, stop)``, one batch of the store at a time."""
        kept = self._kept[start:stop]
        if not len(kept):
            return
        for batch in self.store.batches(int(kept[0]), int(kept[-1]) + 1):
            order = np.asarray(batch.order)
            mask = np.isin(order, kept)
            if mask.any():
                found = with_examples(batch, torch.from_numpy(mask))
                place = np.searchsorted(self._kept, np.asarray(found.order))
                yield replace(found, order=torch.from_numpy(place))
