"""Scores of a few rows, run with a changed model or changed inputs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.core.batch import words_of
from sonde.core.inputs import InputBatch
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import two_logits
from sonde.findings.trial import Measure, Scope, Trial, chooses_by_key
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches

CHUNK = 16

Around = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, eq=False)
class RowScores:
    """Scores of the rows that can be judged; higher is better.

    Parameters
    ----------
    rows : Int[Tensor, "row"]
        Examples by planned order.
    keys : list of bytes
        Their groups.
    score : Float[Tensor, "row"]
    measure : Measure
    """

    rows: Int[Tensor, "row"]
    keys: list[bytes]
    score: Float[Tensor, "row"]
    measure: Measure

    @property
    def chooses(self) -> Tensor:
        """Whether each row belongs to the selection rows, which choose a change."""
        return chooses_by_key(self.keys)

    def tried(self, other: "RowScores", change: str, scope: Scope) -> Trial | None:
        """Return the trial of a change with the scores ``other``, on held-out rows."""
        if not torch.equal(self.rows, other.rows):
            return None
        judge = ~self.chooses
        return Trial(change, scope, self.measure, self.rows[judge], self.score[judge],
                     other.score[judge], group=words_of(self.keys)[judge])  # fmt: skip


def row_scores(
    stream: LiveStream, evidence: Evidence, small: SmallBatches, around: Around | None = None
) -> RowScores | None:
    """Run rows with a change and return their scores; None if the answers cannot be judged.

    The model runs as it was found: a part that was left in training mode stays so.
    """
    found: list[tuple[Tensor, Tensor]] = []
    batches = list(chunks(small))
    for batch in batches:
        try:
            logits = _logits(stream, batch, around)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return None
        scored = None if logits is None else score_rows(logits, batch, evidence.data)
        if scored is None:
            return None
        found.append(scored)
    if not found:
        return None
    known, score = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
    keys = [k for batch in batches for k in batch.group_keys]
    order = torch.cat([batch.order for batch in batches])
    kept = torch.nonzero(known).flatten().tolist()
    measure: Measure = "loss" if stream.model.task == "causal" else "accuracy"
    measure = "error" if evidence.data.target is not None else measure
    return RowScores(order[kept], [keys[i] for i in kept], score[kept].double(), measure)


def chunks(small: SmallBatches, size: int = CHUNK) -> Iterator[InputBatch]:
    """Yield the rows in batches."""
    for start in range(0, len(small), size):
        yield small.together(range(start, min(start + size, len(small))))


def _logits(stream: LiveStream, batch: InputBatch, around: Around | None) -> Tensor | None:
    causal = stream.model.task == "causal"
    output = watch(
        stream.model.module,
        batch,
        (),
        as_found=not stream.model.module.training,
        around=None if around is None else around(),
        place=stream.probe.place,
    ).output
    logits = find_logits(output, None if causal else stream.logits_key)
    return None if logits is None or logits.ndim != (3 if causal else 2) else logits.detach().cpu()


def score_rows(
    logits: Tensor, batch: InputBatch, data: DataEvidence
) -> tuple[Tensor, Float[Tensor, "row"]] | None:
    """Return which rows can be judged, and the score of each row."""
    if logits.ndim == 3:
        ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] < 2:
            return None
        losses = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().cpu(), reduction="none"
        )
        losses = losses.double().reshape(len(ids), -1)
        return torch.ones(len(ids), dtype=torch.bool), -losses.mean(1)
    if data.target is not None:
        truth, every = data.target[batch.order].double(), data.target.double()
        error = (logits[:, 0].double() - truth).square()
        return torch.isfinite(truth), 1 - error / every[torch.isfinite(every)].var(correction=0)
    label = batch.label
    return label >= 0, (two_logits(logits).argmax(1) == label).double()
