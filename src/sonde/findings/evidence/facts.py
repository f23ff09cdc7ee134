"""Facts about a data set that its listing alone provides."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.data import ItemInputs
from sonde.engine.array_stream import ArrayStream
from sonde.findings.evidence.record import DataEvidence
from sonde.run.fitting.header import data_fingerprint
from sonde.tap import LiveStream


def data_evidence(stream: Stream, name: str, limited: bool = False) -> DataEvidence:
    """Return the facts of the data behind a stream.

    Parameters
    ----------
    stream : Stream
    name : str
        The data as typed.
    limited : bool, default=False
        Whether only the first part of the data was taken.
    """
    if isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs):
        return _of_items(stream.inputs, name, limited, stream.seed)
    if isinstance(stream, ArrayStream):
        return _of_arrays(stream, name, limited)
    return _of_batches(stream, name, limited)


def by_answers(data: DataEvidence, logits: Tensor | None) -> DataEvidence:
    """Return the facts with a numeric column read as targets or as classes.

    The numbers are targets if the model gives a single number for a row, unless all are 0 or 1
    (-1 = none): then the model's number is the logit, or the probability, of class 1. For other
    models, whole numbers are classes.
    """
    if data.target is None:
        return data
    single = logits is not None and logits.ndim == 2 and logits.shape[1] == 1
    targets = data.target[torch.isfinite(data.target)]
    binary = bool(torch.isin(targets, torch.tensor([-1.0, 0.0, 1.0], dtype=targets.dtype)).all())
    if data.has_labels and (binary or not single):
        return replace(data, target=None)
    return replace(data, label=torch.full_like(data.label, -1))


def _of_items(inputs: ItemInputs, name: str, limited: bool, seed: int) -> DataEvidence:
    listing = inputs.listing
    return DataEvidence(
        name=name,
        fingerprint=inputs.fingerprint,
        ids=inputs.ids,
        keys=listing.contents,
        group_keys=listing.group_keys,
        grouped=inputs.grouped,
        label=torch.as_tensor(listing.label).long(),
        label_names=inputs.label_names or None,
        labels_are_models=inputs.own_labels,
        target=None if listing.target is None else torch.as_tensor(listing.target),
        missing=inputs.missing,
        n_truncated=inputs.n_truncated,
        sample_of=listing.sample_of,
        n_tokens_cut=int(listing.truncated.sum()),
        n_tokens=int(listing.length.sum()),
        n_skipped=inputs.n_skipped,
        limited=limited,
        seed=seed,
        piece=torch.as_tensor(listing.piece).long(),
        size=torch.as_tensor(listing.size).long(),
        own_columns=inputs.own_columns,
        key_columns=inputs.key_columns,
        inputs=tuple(inputs.layout.inputs),
        by_name=inputs.source.by_name,
        place=inputs.place,
    )


def _of_arrays(stream: ArrayStream, name: str, limited: bool) -> DataEvidence:
    return DataEvidence(
        name=name,
        fingerprint=data_fingerprint(stream),
        ids=stream.who.ids,
        keys=stream.who.keys if stream.who.has_examples_of_rows else stream.who.contents,
        group_keys=stream.group_keys,
        grouped=stream.grouped,
        label=stream.label,
        limited=limited,
        sample_of=stream.sample_of,
        seed=stream.seed,
        piece=_pieces_of_rows(stream),
    )


def _pieces_of_rows(stream: ArrayStream) -> Int[Tensor, "example"] | None:
    """Return the index of each row among the rows of its input, or None if no input has several."""
    several = stream.examples_of_rows
    return None if several is None else _numbered(several, stream.positions.tolist())


def _of_batches(stream: Stream, name: str, limited: bool) -> DataEvidence:
    """Read a stream of another kind once, keeping its columns but no rows."""
    by_order: dict[int, _Example] = {}
    for batch in stream:
        for i, (order, start) in enumerate(zip(batch.order.tolist(), _starts(batch), strict=True)):
            size = int(batch.extra["size"][i]) if "size" in batch.extra else 0
            document = batch.keys[i], int(batch.occurrence[i])
            by_order[order] = _Example(batch.ids[i], document, int(batch.label[i]), start, size)
    examples = [by_order[order] for order in sorted(by_order)]
    return DataEvidence(
        name=name,
        fingerprint=data_fingerprint(stream),
        ids=[e.id for e in examples],
        keys=[e.document[0] for e in examples],
        group_keys=stream.group_keys,
        grouped=stream.grouped,
        label=torch.tensor([e.label for e in examples], dtype=torch.int64),
        label_names=stream.label_names or None,
        labels_are_models=stream.own_labels,
        limited=limited,
        seed=stream.seed,
        piece=_pieces(examples),
        size=torch.tensor([e.size for e in examples], dtype=torch.int64),
    )


@dataclass(frozen=True)
class _Example:
    """Columns of one example; ``start`` is the position of its first row in its document."""

    id: str
    document: tuple[bytes, int]
    label: int
    start: int
    size: int


def _starts(batch: Batch) -> list[int]:
    """Return the position in its document of each example's first row."""
    key = next(iter(batch.rows))
    far = torch.iinfo(torch.int64).max
    starts = torch.full((len(batch.order),), far, dtype=torch.int64)
    starts.scatter_reduce_(0, batch.example[key], batch.position[key].long(), "amin")
    return starts.tolist()


def _pieces(examples: Sequence[_Example]) -> Int[Tensor, "example"]:
    """Return the index of each example among the chunks of its document."""
    return _numbered([e.document for e in examples], [e.start for e in examples])


def _numbered(owners: Sequence[Hashable], starts: Sequence[int]) -> Int[Tensor, "example"]:
    """Return the index of each entry among those of its owner, by position."""
    begun: Counter[Hashable] = Counter()
    pieces = torch.zeros(len(owners), dtype=torch.int64)
    for i in sorted(range(len(owners)), key=lambda i: starts[i]):
        pieces[i] = begun[owners[i]]
        begun[owners[i]] += 1
    return pieces
