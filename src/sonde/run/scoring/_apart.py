"""Scores by workers: each scores whole ranges of units, and the table keeps the order of rows."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from sonde.core.array_stream import ArrayStream
from sonde.core.derived import DerivedStream
from sonde.core.plan import UNIT_SIZE
from sonde.core.stream import Stream
from sonde.run.bundles.fitted import Fitted
from sonde.run.scoring.batches import score_batches
from sonde.run.workers.crew import Crew
from sonde.run.workers.hand_out import hand_out
from sonde.run.workers.job import Job, Span

PARTS = 4
MOST_UNITS = 8


@dataclass(frozen=True, eq=False)
class Part(DerivedStream):
    """Some units of a stream; all else is what the stream says of itself."""

    inner: Stream
    bounds: tuple[int, ...]
    seed: int = 0

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return where the units begin that this part has."""
        return list(self.bounds)


@dataclass(frozen=True)
class ScoreJob(Job):
    """Score a range of units.

    Parameters
    ----------
    fitted : Fitted
    bounds : tuple of int
        Where units begin, and the end.
    reduction : str
    explain : int
    """

    fitted: Fitted
    bounds: tuple[int, ...]
    reduction: str
    explain: int

    def work(self, start: int, stop: int) -> bytes:
        """Return the table of a range, as Arrow writes it."""
        part = Part(self.stream, self.bounds[start : stop + 1], self.stream.seed)
        batches = list(score_batches(self.fitted, part, self.reduction, self.explain))
        sink = pa.BufferOutputStream()
        if batches:
            with pa.ipc.new_stream(sink, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        return sink.getvalue().to_pybytes()


def can_score_apart(stream: Stream) -> bool:
    """Return whether parts can be scored alone: rows of plain arrays are compared with all."""
    return not isinstance(stream, ArrayStream)


def score_apart(
    fitted: Fitted,
    stream: Stream,
    crew: Crew,
    reduction: str,
    explain: int,
    threads: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of ``score_batches``, made by workers, in the order of the rows."""
    bounds = tuple(stream.units())
    spans = _spans(len(bounds) - 1, crew.workers)
    job = ScoreJob(stream, crew.threads(threads), fitted, bounds, reduction, explain)
    waiting: dict[Span, bytes] = {}
    following = iter(spans)
    awaited = next(following, None)
    with closing(hand_out(job, spans, crew)) as answers:
        for span, content in answers:
            waiting[span] = content
            while awaited in waiting:
                yield from _unpacked(waiting.pop(awaited))
                awaited = next(following, None)


def _spans(n_units: int, workers: int) -> list[Span]:
    """Return ranges that give each worker several, and none very much."""
    step = min(MOST_UNITS, max(1, n_units // (PARTS * max(1, workers))))
    edges = [*range(0, n_units, step), n_units]
    return list(itertools.pairwise(edges))


def _unpacked(content: bytes) -> Iterator[pa.RecordBatch]:
    if content:
        with pa.ipc.open_stream(content) as reader:
            yield from reader
