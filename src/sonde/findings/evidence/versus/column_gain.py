"""What the model gains on OTHER once changed units and exchanged columns are corrected."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.stream import Stream
from sonde.findings.evidence.inputs.shortcuts import answers_of, class_answers_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.evidence.versus.column_moves import ColumnMove
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.small_batches import single

ROWS: Final = 400


@dataclass(frozen=True)
class ColumnGain:
    """Accuracy with given and with corrected columns, on ``n`` rows of OTHER.

    For a regression (``numbers``), both values are R^2.
    """

    given: float
    mended: float
    n: int
    numbers: bool = False


def column_gain(stream: Stream, other: Evidence, moves: Sequence[ColumnMove]) -> ColumnGain | None:
    """Run the model on at most 400 rows of OTHER, unchanged and with corrected columns.

    Multiplied columns are divided, exchanged columns change places again. None if the model gives
    no logits, if the rows have neither a target nor a label among its classes, or if its input is
    no vector of columns.
    """
    shared, truths = shared_rows(other), _truths(other)
    undone = [m for m in moves if m.is_input and m.kind in ("factor", "exchanged")]
    if not isinstance(stream, LiveStream) or stream.logits_key is None or not undone:
        return None
    if truths is None or shared.order is None:
        return None
    rows = one_per_group(shared.group)
    rows = rows[torch.isfinite(truths[rows]) & (shared.group[rows] % 2 == 1)][:ROWS]
    singles = [single(stream.inputs, int(shared.order[row])) for row in rows]
    given = [one for one in singles if one is not None]
    n = len(other.data.inputs)
    if not len(rows) or len(given) < len(rows) or any(_vector(one, n) is None for one in given):
        return None
    mended = [_mended(one, undone, other.data.inputs) for one in given]
    truth, numbers = truths[rows], other.data.target is not None
    with untouched(stream.model.module), torch.no_grad():
        before, after = (_reached(stream, some, truth, numbers) for some in (given, mended))
    return ColumnGain(before, after, len(truth), numbers)


def _truths(other: Evidence) -> Tensor | None:
    """Return the target or class of each shared row, NaN if missing; None if unknown."""
    shared, target = shared_rows(other), other.data.target
    if target is not None and shared.order is not None:
        return target[shared.order].double()
    label = shared.column("label")
    if label is None or not other.data.labels_are_models:
        return None
    return torch.where(label >= 0, label.double(), torch.nan)


def _reached(stream: LiveStream, some: Sequence[InputBatch], truth: Tensor, numbers: bool) -> float:
    """Return the fraction of correct answers, or R^2."""
    if not numbers:
        return float((class_answers_of(stream, some) == truth.numpy()).mean())
    answers = answers_of(stream, some)
    if answers is None or answers.shape[1] != 1:
        return float("nan")
    return 1 - float((answers[:, 0] - truth).square().mean() / truth.var(correction=0))


def _vector(one: InputBatch, n: int) -> Tensor | None:
    """Return an example's only tensor if it holds one number for each of ``n`` columns."""
    values = [x for x in (*one.args, *one.kwargs.values()) if isinstance(x, Tensor)]
    is_vector = len(values) == 1 and values[0].is_floating_point() and values[0].shape[-1] == n
    return values[0] if is_vector else None


def _mended(one: InputBatch, moves: Sequence[ColumnMove], inputs: Sequence[str]) -> InputBatch:
    def of(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        changed = value.clone()
        for move in moves:
            at = inputs.index(move.column)
            source = inputs.index(move.partner) if move.partner else at
            changed[..., at] = value[..., source] / move.factor
        return changed

    kwargs = {name: of(value) for name, value in one.kwargs.items()}
    return replace(one, args=tuple(of(value) for value in one.args), kwargs=kwargs)
