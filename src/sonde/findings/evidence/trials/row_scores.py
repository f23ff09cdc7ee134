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
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.answer_scores import AnswerScores, answer_scores
from sonde.findings.trial import CANNOT_RUN, Measure, Scope, Trial, chooses_by_key
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
    batches = list(chunks(small))
    if not batches:
        return None
    order = torch.cat([batch.order for batch in batches])
    causal = stream.model.task == "causal"
    scores = None if causal else answer_scores(stream, evidence, order.tolist())
    if isinstance(scores, str):
        return None
    parts: list[Tensor] = []
    for batch in batches:
        try:
            score = _scores_of(_output(stream, batch, around), batch, scores)
        except CANNOT_RUN:
            return None
        if score is None:
            return None
        parts.append(score)
    keys = [k for batch in batches for k in batch.group_keys]
    is_known = torch.ones(len(order), dtype=torch.bool) if scores is None else scores.known(order)
    kept = torch.nonzero(is_known).flatten().tolist()
    measure: Measure = "loss" if scores is None else scores.measure
    score = torch.cat(parts)[kept].double()
    return RowScores(order[kept], [keys[i] for i in kept], score, measure)


def chunks(small: SmallBatches, size: int = CHUNK) -> Iterator[InputBatch]:
    """Yield the rows in batches."""
    for start in range(0, len(small), size):
        yield small.together(range(start, min(start + size, len(small))))


def _output(stream: LiveStream, batch: InputBatch, around: Around | None) -> object:
    return watch(
        stream.model.module,
        batch,
        (),
        as_found=not stream.model.module.training,
        around=None if around is None else around(),
        place=stream.probe.place,
    ).output


def _scores_of(
    output: object, batch: InputBatch, scores: AnswerScores | None
) -> Float[Tensor, "row"] | None:
    """Return the score of each row: of its answer, or, without labels, of its next tokens."""
    if scores is not None:
        answers = scores.of(output)
        return None if answers is None else scores.scores(answers.detach(), batch.order)
    logits = find_logits(output)
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    if logits is None or logits.ndim != 3 or not isinstance(ids, Tensor):
        return None
    if ids.ndim != 2 or ids.shape[1] < 2:
        return None
    losses = functional.cross_entropy(
        logits[:, :-1].detach().cpu().flatten(0, 1).float(), ids[:, 1:].flatten().cpu(),
        reduction="none",
    )  # fmt: skip
    return -losses.double().reshape(len(ids), -1).mean(1)
