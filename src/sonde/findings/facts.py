"""What is known of a data set from its listing alone."""

from typing import Any

import torch

from sonde.core.array_stream import ArrayStream
from sonde.core.stream import Stream
from sonde.data import ItemInputs
from sonde.findings.evidence import DataEvidence
from sonde.run.fit import data_fingerprint
from sonde.tap import LiveStream

SHORT_BYTES = 16


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
        n_truncated=inputs.n_truncated,
        n_tokens_cut=int(listing.truncated.sum()),
        n_tokens=int(listing.length.sum()),
        n_skipped=inputs.n_skipped,
        n_short=int((listing.size < SHORT_BYTES).sum()),
        limited=limited,
        seed=seed,
        piece=torch.as_tensor(listing.piece).long(),
        size=torch.as_tensor(listing.size).long(),
    )


def _of_arrays(stream: ArrayStream, name: str, limited: bool) -> DataEvidence:
    return DataEvidence(
        name=name,
        fingerprint=data_fingerprint(stream),
        ids=stream.who.ids,
        keys=stream.who.keys,
        group_keys=stream.group_keys,
        grouped=stream.grouped,
        label=stream.label,
        limited=limited,
        seed=stream.seed,
    )


def _of_batches(stream: Stream, name: str, limited: bool) -> DataEvidence:
    """Walk a stream of another kind once, keeping its columns and none of its rows."""
    ids: dict[int, str] = {}
    keys: dict[int, bytes] = {}
    labels: dict[int, int] = {}
    for batch in stream:
        for i, order in enumerate(batch.order.tolist()):
            ids[order], keys[order] = batch.ids[i], batch.keys[i]
            labels[order] = int(batch.label[i])
    every: list[Any] = sorted(ids)
    return DataEvidence(
        name=name,
        fingerprint=data_fingerprint(stream),
        ids=[ids[i] for i in every],
        keys=[keys[i] for i in every],
        group_keys=stream.group_keys,
        grouped=stream.grouped,
        label=torch.tensor([labels[i] for i in every], dtype=torch.int64),
        limited=limited,
        seed=stream.seed,
    )
