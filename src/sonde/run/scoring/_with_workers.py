"""Scores by workers: each scores whole parts of a stream, and the table keeps the order of rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from sonde.core.stream import Stream
from sonde.run.bundles.fitted import Fitted
from sonde.run.scoring.batches import score_batches
from sonde.run.workers.crew import Crew
from sonde.run.workers.parts import PartJob, in_order


@dataclass(frozen=True)
class ScoreJob(PartJob):
    """Score a part.

    Parameters
    ----------
    fitted : Fitted
    reduction : str
    explain : int
    """

    fitted: Fitted
    reduction: str
    explain: int

    def of_part(self, part: Stream) -> bytes:
        """Return the table of a part, as Arrow writes it."""
        batches = list(score_batches(self.fitted, part, self.reduction, self.explain))
        sink = pa.BufferOutputStream()
        if batches:
            with pa.ipc.new_stream(sink, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        return sink.getvalue().to_pybytes()


def score_with_workers(
    fitted: Fitted,
    stream: Stream,
    crew: Crew,
    reduction: str,
    explain: int,
    threads: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of ``score_batches``, made by workers, in the order of the rows."""
    bounds = tuple(stream.units())
    job = ScoreJob(stream, crew.threads(threads), bounds, fitted, reduction, explain)
    for content in in_order(job, crew):
        if content:
            with pa.ipc.open_stream(content) as reader:
                yield from reader
