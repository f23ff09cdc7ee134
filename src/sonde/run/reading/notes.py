"""Notes on the data read, printed once at the end of a run."""

import warnings
from pathlib import Path
from typing import Any

from sonde.core.errors import SondeWarning
from sonde.core.inputs import Inputs
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.data import ItemInputs
from sonde.data.limited import sample_note
from sonde.data.splits import TRAIN
from sonde.engine.array_stream import ArrayStream
from sonde.engine.derived import innermost
from sonde.tap import LiveStream
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.logits import other_outputs


def notes_of(stream: Stream) -> list[str]:
    """Return notes on chunks, skipped items, and labels that are missing or unknown to the model.

    Items that a source had to skip are known once they were read.
    """
    if isinstance(stream, ArrayStream):
        return [*sample_note(len(stream), stream.sample_of), *_unlabelled(stream.label)]
    inputs, texts = items_of(stream), _logits_note(stream)
    return texts if inputs is None else [*inputs.notes, *_unlabelled(inputs.listing.label), *texts]


def _logits_note(stream: Stream) -> list[str]:
    """Return a note on which output counts as logits, unless its name makes that clear."""
    live = innermost(stream)
    if not isinstance(live, LiveStream) or not live.with_logits or "logits_key" not in vars(live):
        return []
    key = live.logits_key
    if key is None:
        return _unjudged_note(live)
    if key == "logits" or (key == "" and live.head is not None):
        return []
    others = other_outputs(live.probe, key)
    more = f" (others: {', '.join(others)})" if others else ""
    shape = live.probe.output[key].shape
    if len(shape) < 2 or shape[-1] == 1:
        return []  # one number for each example is no choice among outputs
    return [
        f"the model's output {key or '0'!r} ({shape[-1]} numbers for each example) is taken as "
        f"its logits because of its shape{more}; choose another output with --logits OUTPUT."
    ]


def _unjudged_note(live: LiveStream) -> list[str]:
    """Return a note on naming the logits of a classifier whose output could be an embedding."""
    rows = [k for k in other_outputs(live.probe, None) if live.probe.output[k].shape[-1] > 1]
    inputs = live.inputs
    if not rows or not isinstance(inputs, ItemInputs) or not (inputs.listing.label >= 0).any():
        return []
    outputs = " or ".join(f"{k or '0'!r} ({live.probe.output[k].shape[-1]} numbers)" for k in rows)
    return [
        f"answers are not evaluated: it is not known whether the model's output {outputs} contains "
        "logits of classes or an embedding. If it contains logits, pass --logits "
        f"{rows[0] or '0'}."
    ]


def items_of(stream: Stream | None) -> ItemInputs | None:
    """Return the data behind a live stream, or the prompts if the texts are generated."""
    live = None if stream is None else innermost(stream)
    inputs = live.inputs if isinstance(live, LiveStream) else None
    inputs = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
    return inputs if isinstance(inputs, ItemInputs) else None


def data_name(data: Any, inputs: Inputs | None = None) -> str:
    """Return the name of data as typed, or the type of the object.

    Of ``inputs`` that are prompts with completions it says that a loss counts completions only.

    Examples
    --------
    >>> data_name("rows.csv"), data_name([1, 2])
    ('rows.csv', 'list of items')
    """
    name = str(data) if isinstance(data, str | Path) else f"{type(data).__name__} of items"
    counts = inputs is not None and inputs.counts_completions
    return f"{name} (tokens of completions only)" if counts else name


def split_of(stream: Stream | None) -> str | None:
    """Return the split that is read, if the data have several."""
    inputs = items_of(stream)
    return None if inputs is None else inputs.source.split


def warn_of_split(stream: Stream) -> None:
    """Warn if a fit reads a non-training split that the user did not name."""
    inputs = items_of(stream)
    source = None if inputs is None else inputs.source
    if source is None or source.split is None or source.split_was_named or source.split in TRAIN:
        return
    warnings.warn(
        f"fit: no split was named, so the split {source.name} is read; a method that is fitted "
        "on these rows cannot be tested on them. Name another split "
        f"({', '.join(source.other_splits)}), or {source.split!r} if this split is intended: "
        "sonde.read(model, data, split=...).",
        SondeWarning,
        stacklevel=4,
    )


def _unlabelled(label: Any) -> list[str]:
    """Return a note on how many examples have no label, if others have a label."""
    n, missing = len(label), int((label < 0).sum())
    if not 0 < missing < n:
        return []
    return [
        f"{missing:,} of {plural(n, 'example')} have no label (-1 or empty); methods that use "
        "labels leave "
        "them out. If -1 is a class, number the classes from 0."
    ]
