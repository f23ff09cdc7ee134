"""A data set as the batches of one model: ``ItemInputs``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.errors import InputError, near
from sonde.core.inputs import InputBatch, Inputs
from sonde.core.token_masks import NAMES
from sonde.core.wording import plural
from sonde.data.columns import LABEL_NAMES, PAIRED, Layout
from sonde.data.encoder import Collated, Encoder, Prepared
from sonde.data.iterables import Iterated
from sonde.data.limited import sample_note
from sonde.data.listing import Listing, list_source, pick, taken
from sonde.data.sources import Row, Source

LEAST = 8
MAP = 4


CUT = {"audio": ("recording", "the length that the feature extractor keeps")}
"""What is cut off, and where, of items that are no texts."""
READ_AT_ONCE = 256


@final
@dataclass(frozen=True, eq=False)
class ItemInputs(Inputs):
    """Items of a source in their order, encoded for one model, unit by unit.

    Parameters
    ----------
    source, encoder, layout, listing
        Where rows are, how they become inputs, which column is what, and who they are.
    batch_size : int
        Most examples of one forward pass. It is fixed, so that a second run rounds as the first.
    skip_bad : bool
        Leave out items that cannot be decoded, and count them.
    typed : dict
        The options that say how items are encoded, as they were given, in JSON.
    room : (int, int) or None
        New tokens and beams that batches have room for, if their size was chosen; None if the user
        gave it.
    """

    source: Source
    encoder: Encoder
    layout: Layout
    listing: Listing
    batch_size: int
    skip_bad: bool = False
    typed: dict[str, Any] = field(default_factory=dict[str, Any])
    room: tuple[int, int] | None = None
    _broken: dict[int, str] = field(default_factory=dict)

    def first(self, n: int) -> "ItemInputs":
        """Return the first ``n`` examples of the planned order."""
        if n >= len(self):
            return self
        return replace(self, listing=taken(self.listing, np.arange(n), f"first {n}"))

    def at(self, examples: np.ndarray) -> "ItemInputs":
        """Return the examples with these sorted indices."""
        how = f"at {','.join(map(str, examples.tolist()))}"
        return replace(self, listing=taken(self.listing, examples, how))

    def drawn(self, n: int, seed: int) -> "ItemInputs":
        """Return the ``n`` examples of smallest sampling key, in the planned order."""
        return replace(self, listing=pick(self.listing, n, seed))

    def of_class(self, name: str, without: bool = False) -> "ItemInputs":
        """Return the examples of one class, or of all other classes.

        Raises
        ------
        InputError
            If no class of the data has this name.
        """
        wanted = (self.listing.label == self.class_number(name)) != without
        how = f"{'without' if without else 'class'} {name}"
        return replace(self, listing=taken(self.listing, np.flatnonzero(wanted), how))

    def class_number(self, name: str) -> int:
        """Return the index of a class by its name; the error lists similar names."""
        numbers = dict(zip(self.label_names, range(len(self.label_names)), strict=True))
        if name not in numbers:
            raise InputError(
                f"{self.source.name}: expected a class among {', '.join(numbers) or 'none'}, got "
                f"{name!r}.{near(name, numbers)}"
            )
        return numbers[name]

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example."""
        return self.listing.group_keys

    @property
    def grouped(self) -> bool:
        """True if groups or pairs were given, or items were cut into chunks."""
        of_items = self.layout.group is not None or self.layout.paired
        return of_items or self.listing.n_chunked > 0

    @property
    def pads(self) -> bool:
        """True if texts are padded by the encoder, on the right."""
        return self.encoder.pads

    @property
    def source_rows(self) -> np.ndarray:
        """Index of each example's source item; skipped items count."""
        return self.source.numbers(self.listing.row)

    def place(self, example: int) -> str:
        """Return an example's location in the user's data, with the start of a chunk.

        Paths are relative to the data; lines count from 1, rows and items from 0.
        """
        place = self.source.place(int(self.listing.row[example]))
        first = self.listing.first[example]
        return f"{place}, from token {first}" if first else place

    @cached_property
    def ids(self) -> list[str]:
        """Printable id of every example."""
        return [self._printable(key) for key in self.listing.keys]

    def own_columns(self, examples: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns that are not input, label, id or group, with None for empty cells.

        Only columns of single texts and numbers; the rows are read again, nothing is decoded.
        """
        layout = self.layout
        used = {*layout.inputs, layout.label, layout.id, layout.group, layout.target, *PAIRED}
        return self._single(examples, used | {*layout.more_labels})

    def key_columns(self, examples: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns that can identify a row, including input and id."""
        layout = self.layout
        return self._single(examples, {layout.label, layout.group, layout.target, *PAIRED})

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns: the class or target first, then those of other heads."""
        layout = self.layout
        return () if layout.label is None else (layout.label, *layout.more_labels)

    def labels_of(self, examples: Sequence[int]) -> dict[str, list[Any]]:
        """Return the label columns unchanged, with None for empty cells."""
        numbers = [int(self.listing.row[i]) for i in examples]
        rows = {n: self.source.take(n, n + 1)[0] for n in sorted(set(numbers))}
        return {name: [rows[n].get(name) for n in numbers] for name in self.label_columns}

    def _single(self, examples: Sequence[int], known: set[str | None]) -> dict[str, list[Any]]:
        numbers = self.listing.row[list(examples)].tolist()
        rows: dict[int, Row] = {}
        for run in runs(np.unique(numbers), READ_AT_ONCE):
            rows |= zip(run.tolist(), self.source.take(int(run[0]), int(run[-1]) + 1), strict=True)
            if not rows[int(run[0])].keys() - known and not self.source.rows_differ:
                return {}
        names = sorted({name for row in rows.values() for name in row} - known)
        columns = {name: [rows[n].get(name) for n in numbers] for name in names}
        return {name: v for name, v in columns.items() if all(map(_is_plain, v))}

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.listing.labels.names if self.listing.labels.any else ()

    @property
    def own_labels(self) -> bool:
        """True if class indices are the model's own."""
        return self.listing.labels.own

    def with_own_labels(self, reason: str) -> "ItemInputs":
        """Return the items with labels declared to be the model's classes, for the given reason."""
        labels = replace(self.listing.labels, own=True, reason=reason)
        typed = self.typed | {"classes": list(labels.names)}
        return replace(self, listing=replace(self.listing, labels=labels), typed=typed)

    @property
    def n_skipped(self) -> int:
        """Number of items skipped so far, in the listing and in batches."""
        return self.listing.n_skipped + len(self._broken)

    @property
    def missing(self) -> dict[str, Any] | None:
        """Number of rows without a value, by column of numbers; None for other inputs.

        Rows that were left out for it are among them.
        """
        if self.encoder.kind != "numbers":
            return None
        listing = self.listing
        return {"rows": listing.n_items + listing.n_skipped, "columns": dict(listing.missing)}

    @property
    def n_truncated(self) -> int:
        """Number of items that were cut."""
        return self.listing.n_truncated

    @property
    def counts_completions(self) -> bool:
        """True if items are prompts with completions, and a loss counts the completions only."""
        return self.encoder.counts_completions

    @property
    def fingerprint(self) -> str:
        """Hash of the content, ids, groups and labels in order."""
        return self.listing.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on these data for the user, one sentence each, printed once."""
        listing = self.listing
        texts = [*self._split_note(), *sample_note(listing.n_items, listing.sample_of)]
        texts += self.encoder.notes()
        given = {*self.layout.inputs, *self.layout.beside} & {*LABEL_NAMES}
        if given and self.layout.label is None and self.encoder.kind == "features":
            texts.append(
                f"{min(given)!r} is passed as an argument of forward, not used as a label "
                f"(--label-column {min(given)} makes it the label)."
            )
        if listing.n_chunked:
            texts.append(
                f"{listing.n_chunked:,} of {plural(listing.n_items, 'text')} "
                f"{'is' if listing.n_chunked == 1 else 'are'} longer than {self._limit} and "
                f"{'is' if listing.n_chunked == 1 else 'are'} cut into chunks, which form one "
                "group (--long chunk)."
            )
        if listing.n_truncated:
            what, end = CUT.get(self.encoder.kind, ("text", self._limit))
            texts.append(
                f"{listing.n_truncated:,} of {plural(listing.n_items, what)} "
                f"{'was' if listing.n_truncated == 1 else 'were'} cut off at {end}."
            )
        if self.n_skipped:
            reasons = "; ".join([*listing.skipped, *self._broken.values()][:3])
            texts.append(
                f"{plural(self.n_skipped, 'item was', 'items were')} skipped"
                f"{': ' + reasons if reasons else ''}."
            )
        if listing.labels.reason and not listing.labels.several:
            texts.append(f"{listing.labels.reason[0].upper()}{listing.labels.reason[1:]}.")
        return tuple(texts)

    @property
    def _limit(self) -> str:
        """What limits the tokens of a text, in words."""
        most = self.typed.get("max_length")
        context = "the model's context"
        return context if most is None else f"--max-length {most}, or {context} if that is shorter"

    def _split_note(self) -> list[str]:
        source = self.source
        if source.split is None:
            return []
        others = f" (others: {', '.join(source.other_splits)})" if source.other_splits else ""
        return [f"{source.name} is read, the split {source.split!r}{others}."]

    def identity(self) -> dict[str, Any]:
        """Return the data, their encoding and their batches as identity."""
        return {
            "fingerprint": self.fingerprint,
            "examples": len(self),
            "order": "stored",
            "batch_size": self.batch_size,
            "skip_bad": self.skip_bad,
            **({"even": True} if self.encoder.even else {}),
            "encoding": self.encoder.identity(),
        }

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield one unit: sorted by length, cut at the batch size, padded on the right."""
        index = np.arange(start, min(stop, len(self)))
        if not len(index):
            return
        items = self.prepared(index)
        order = sorted(range(len(items)), key=lambda i: (items[i].length, i))
        for run in self._runs(order, items):
            for first in range(0, len(run), self.batch_size):
                chosen = run[first : first + self.batch_size]
                batch = self.assembled(index[chosen], [items[i] for i in chosen])
                if batch is not None:
                    yield batch

    def _runs(self, order: list[int], items: list[Prepared]) -> list[list[int]]:
        """Return the index runs to cut batches from: the unit, or its examples of each length."""
        if not self.encoder.even:
            return [order]
        return [list(run) for _, run in groupby(order, key=lambda i: items[i].length)]

    def prepared(self, index: np.ndarray) -> list[Prepared]:
        """Return the examples with these indices, ready for a batch."""
        numbers, inverse = np.unique(self.listing.row[index], return_inverse=True)
        rows = self._rows(numbers, index)
        pieces = self.listing.piece[index]
        wanted = [(int(r), int(p)) for r, p in zip(inverse, pieces, strict=True)]
        return self.encoder.prepare(rows, wanted)

    def _rows(self, numbers: np.ndarray, index: np.ndarray) -> list[Row]:
        rows: list[Row] = []
        for run in runs(numbers):
            rows += self.source.take(int(run[0]), int(run[-1]) + 1)
        self._check_unchanged(rows, numbers, index)
        return rows

    def _check_unchanged(self, rows: Sequence[Row], numbers: np.ndarray, index: np.ndarray) -> None:
        listed = {int(self.listing.row[i]): self.listing.contents[i] for i in index}
        for row, number in zip(rows, numbers, strict=True):
            if self.encoder.key(row) != listed[int(number)]:
                raise InputError(
                    f"{self.source.where(int(number))}: the content has changed "
                    "since the data "
                    "were listed. Pass data whose content and order do not change."
                )

    def assembled(self, index: np.ndarray, items: list[Prepared]) -> InputBatch | None:
        """Return one batch of prepared examples, or None if every example is skipped.

        An example may occur several times.
        """
        collated = self.encoder.collate(items)
        if collated.bad:
            index = self._without(index, collated.bad)
            items = [item for i, item in enumerate(items) if i not in collated.bad]
            if not items:
                return None
        listing = self.listing
        lengths = torch.tensor([item.length for item in items])
        length = lengths if collated.mask is None else collated.mask.sum(1)
        return InputBatch(
            args=collated.args,
            kwargs=collated.kwargs,
            ids=[self._printable(listing.keys[i]) for i in index],
            keys=[listing.keys[i] for i in index],
            order=torch.from_numpy(index.copy()),
            occurrence=_tensor(listing.occurrence, index),
            group_keys=[listing.group_keys[i] for i in index],
            label=_tensor(listing.label, index),
            mask=collated.mask,
            decoder_mask=collated.decoder_mask,
            special=collated.special,
            segment=collated.segment,
            first=_tensor(listing.first, index),
            grid=collated.grid,
            packed=collated.packed,
            placeholder=collated.placeholder,
            completion=collated.completion,
            token_axes=collated.token_axes,
            length=length if collated.mask is not None else None,
            truncated=_tensor(listing.truncated, index) if collated.mask is not None else None,
            pair=_tensor(listing.pair, index) if self.layout.paired else None,
            side=_tensor(listing.side, index) if self.layout.paired else None,
            columns=self._columns(collated, index, length),
        )

    def over(self, rows: Sequence[Row]) -> "ItemInputs":
        """Return other items with this encoding.

        Raises
        ------
        InputError
            Naming the first item that is broken.
        """
        source = Iterated(list(rows))
        listing = list_source(source, self.encoder, self.layout)
        return replace(self, source=source, listing=listing)

    def collated(self, items: Sequence[Prepared], keys: Sequence[bytes]) -> InputBatch:
        """Return a batch of prepared examples of any items, identified by ``keys``.

        Raises
        ------
        InputError
            If an item cannot be made into inputs, such as an image that cannot be decoded.
        """
        batch = self.encoder.collate(items)
        if batch.bad:
            raise InputError(f"{next(iter(batch.bad.values()))}.")
        order = torch.arange(len(items))
        nothing = torch.zeros_like(order)
        lengths = torch.tensor([item.length for item in items])
        length = lengths if batch.mask is None else batch.mask.sum(1)
        return InputBatch(
            args=batch.args,
            kwargs=batch.kwargs,
            ids=[key.hex() for key in keys],
            keys=keys,
            order=order,
            occurrence=nothing,
            group_keys=keys,
            label=nothing - 1,
            mask=batch.mask,
            decoder_mask=batch.decoder_mask,
            special=batch.special,
            segment=batch.segment,
            first=nothing,
            grid=batch.grid,
            packed=batch.packed,
            placeholder=batch.placeholder,
            completion=batch.completion,
            token_axes=batch.token_axes,
            length=length if batch.mask is not None else None,
            columns=batch.columns,
        )

    def _printable(self, key: bytes) -> str:
        return key.hex() if self.layout.id is None else key.decode("utf-8", "replace")

    def _columns(self, made: Collated, index: np.ndarray, length: torch.Tensor) -> dict[str, Any]:
        columns = {**made.columns, "size": _tensor(self.listing.size, index)}
        constant = constant_rows(made.args, made.kwargs)
        if constant is not None:
            columns["constant"] = constant.long()
        if made.mask is not None:
            columns["length"] = length
            columns["padding"] = made.mask.shape[1] - length
            columns["truncated"] = _tensor(self.listing.truncated, index)
        return columns

    def _without(self, index: np.ndarray, bad: dict[int, str]) -> np.ndarray:
        for i, reason in bad.items():
            row = int(self.listing.row[index[i]])
            message = f"{self.source.where(row)}: {reason}"
            if not self.skip_bad:
                raise InputError(
                    f"{message}. Fix or remove it, or pass skip_bad=True (--skip-bad)."
                )
            self._broken[row] = message
        return np.delete(index, list(bad))


def runs(numbers: np.ndarray, at_most: int = 2**31) -> list[np.ndarray]:
    """Split sorted numbers into runs without gaps, of at most ``at_most`` members.

    Examples
    --------
    >>> [run.tolist() for run in runs(np.array([3, 4, 5, 9]), 2)]
    [[3, 4], [5], [9]]
    """
    if not len(numbers):
        return []
    whole = np.split(numbers, np.nonzero(np.diff(numbers) > 1)[0] + 1)
    return [run[i : i + at_most] for run in whole for i in range(0, len(run), at_most)]


def _tensor(values: np.ndarray, index: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values[index].astype(np.int64))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def constant_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bool[Tensor, "example"] | None:
    """Return for each example whether its inputs are constant, separately by channel for maps.

    None if the model is given whole numbers, such as tokens, or fewer than eight numbers.
    """
    given = [*args, *(value for name, value in kwargs.items() if name not in NAMES)]
    tensors = [x for x in given if isinstance(x, Tensor) and x.ndim > 0]
    if not tensors or any(not x.is_floating_point() for x in tensors):
        return None
    if any(x.ndim < 2 or x[:1].numel() < LEAST for x in tensors):
        return None
    return torch.stack([_constant(x) for x in tensors]).all(0)


def _constant(x: Tensor) -> Bool[Tensor, "example"]:
    """Return whether a map's channels, a sequence's rows or columns, or rows are constant."""
    if x.ndim >= MAP:
        x = x.flatten(2)
        return (x.amax(2) == x.amin(2)).all(1)
    if x.ndim == 2:
        return x.amax(1) == x.amin(1)
    flat = [(x.amax(a) == x.amin(a)).all(1) for a in (1, 2) if x.shape[a] > 1]
    return torch.stack(flat).any(0)
