"""Rows of a store that a reader may see, by a column of access labels.

This keeps rows apart in what is fitted and scored. It is no access control: whoever may open the
files of a store reads all of it.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from itertools import groupby
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int

from sonde.core.batch import Batch, SiteSchema
from sonde.core.clearance import LABELS
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.engine.array_stream import ARRAY_BATCH
from sonde.engine.joining import columns_of, join
from sonde.store._columns import label_text, plain_values
from sonde.store._identity import DATA, data_of, is_of_arrays, without_data
from sonde.store._subset import equal_examples, in_planned_order, with_examples
from sonde.store.reading import Store

BATCH = 64


@final
class Cleared(Stream):
    """The examples of a store whose label is missing or in the reader's clearance.

    Units, batches, groups, counts of equal examples, samples and hashes are those of the visible
    examples alone, so rows that the reader may not see change nothing, to the byte; the names and
    numbers of classes are those of the whole store. What is fitted on these examples carries their
    labels, and only readers who are cleared for all these labels may score with it.

    Parameters
    ----------
    store : Store
        Store whose examples are filtered.
    column : str
        Column of the store with a label for each example (``columns=`` of ``write_store``).
    clearance : collection of str or numbers
        Labels of the reader; in a column of numbers, 1 and 1.0 are one label.

    Raises
    ------
    InputError
        If the store has no such column, or no example is visible.
    """

    def __init__(self, store: Store, column: str, clearance: Collection[Any]) -> None:
        if isinstance(clearance, str | bytes):
            raise InputError(f"Cleared: expected a set of labels, got the text {clearance!r}.")
        self.store, self.seed = store, store.seed
        held, kind = store.held_name(column), store.manifest.columns[column]
        labels = {i: x if x is None else label_text(x, kind) for i, x in store.told(held).items()}
        allowed = {label_text(label, kind) for label in plain_values(list(clearance))}
        self._clearance = tuple(sorted(allowed))
        kept = [i for i, x in labels.items() if x is None or x in allowed]
        self._kept = np.asarray(sorted(kept), dtype=np.int64)
        if not kept:
            raise InputError(
                f"Cleared: expected at least one example whose {column!r} is one of the cleared "
                f"labels ({', '.join(self._clearance) or 'none'}), got none among {len(labels):,} "
                "examples."
            )
        self.labels = tuple(sorted({x for x in map(labels.get, kept) if x is not None}))

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
        """True if visible examples have groups of their own, or several are parts of one."""
        return self._grouped

    @cached_property
    def _grouped(self) -> bool:
        if not self.store.grouped:
            return False
        keys = [key for key, _ in self._who]
        return keys != list(self.group_keys) or len(set(self._who)) < len(keys)

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The key and occurrence of each row of plain arrays, if an example has several rows."""
        several = self.store.examples_of_rows is not None and len(set(self._who)) < len(self._who)
        return self._who if several else None

    @cached_property
    def _is_of_arrays(self) -> bool:
        return is_of_arrays(self.store.identity())

    @cached_property
    def _who(self) -> list[tuple[bytes, int]]:
        """The key of each visible example, and its number among equal visible examples."""
        stored: dict[int, tuple[bytes, Hashable, int]] = {}
        for batch in self.store.select([self.schema[0].key]):
            equal = equal_examples(batch, self._is_of_arrays)
            keys, numbers = map(bytes, batch.keys), np.asarray(batch.occurrence).tolist()
            order = batch.order.tolist()
            stored |= zip(order, zip(keys, equal, numbers, strict=True), strict=True)
        last: dict[Hashable, tuple[int, int]] = {}
        owners: list[tuple[bytes, int]] = []
        for i in self._kept.tolist():
            key, equal, number = stored[i]
            before, count = last.get(equal, (number, 0))
            last[equal] = (number, count + (number != before))
            owners.append((key, last[equal][1]))
        return owners

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number."""
        return self.store.label_names

    @property
    def own_labels(self) -> bool:
        """True if the data's class numbers are known to be the model's class numbers."""
        return self.store.own_labels

    @property
    def labels_number_outputs(self) -> bool:
        """True if the labels, in their order, name the outputs of a model without names."""
        return self.store.labels_number_outputs

    @property
    def source_rows(self) -> Int[np.ndarray, "_example"] | None:
        """Index of the data item of each example."""
        numbers = self.store.source_rows
        return None if numbers is None else numbers[self._kept]

    @property
    def behaviour(self) -> dict[str, Any] | None:
        """States of a few drawn inputs, by which the model is recognised; None if unknown."""
        return self.store.behaviour

    def identity(self) -> dict[str, Any]:
        """Return the identity of the store's model and of the visible examples."""
        whole = self.store.identity()
        encoding = {name: x for name, x in data_of(whole).items() if name == "encoding"}
        arrays = {"arrays": True} if self._is_of_arrays else {}
        return {
            **without_data(whole),
            DATA: {**encoding, **arrays, "cleared": self._content},
            LABELS: list(self.labels),
        }

    @cached_property
    def _content(self) -> str:
        """Return the hash of the visible examples: of their keys, classes and, if named, rows."""
        hasher = blake2b(digest_size=16)
        label, ids = self.store.told("label"), self.store.told("id")
        for i, (key, _) in zip(self._kept.tolist(), self._who, strict=True):
            hasher.update(f"{label[i]} {len(key)} ".encode() + key)
        named = any(ids[i] != k.hex() for i, (k, _) in zip(self._kept, self._who, strict=True))
        if named or self._is_of_arrays:  # a key that is no hash of the content says nothing of it
            for batch in self:
                for x in batch.rows.values():
                    hasher.update(x.contiguous().view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the visible examples ``[start, stop)`` in the planned order, some at a time."""
        kept, most = self._kept[start:stop], ARRAY_BATCH if self._is_of_arrays else BATCH
        for first in range(0, len(kept), most):
            parts = groupby(self._parts(kept[first : first + most]), columns_of)
            for batch in (join(list(part)) for _, part in parts):
                place = np.searchsorted(self._kept, np.asarray(batch.order))
                occurrence = torch.tensor([self._who[int(i)][1] for i in place])
                renumbered = replace(batch, order=torch.from_numpy(place), occurrence=occurrence)
                yield in_planned_order(renumbered)

    def _parts(self, kept: Int[np.ndarray, "_some"]) -> Iterator[Batch]:
        """Yield examples by their numbers in the store, as its batches hold them."""
        for batch in self.store.batches(int(kept[0]), int(kept[-1]) + 1):
            mask = np.isin(np.asarray(batch.order), kept)
            if mask.any():
                yield with_examples(batch, torch.from_numpy(mask))
