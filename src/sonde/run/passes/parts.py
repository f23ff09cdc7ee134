"""Split a stream into parts for workers, and return the results in the order of the rows."""

import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from sonde.core.plan import UNIT_SIZE
from sonde.core.state import canonical_json
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.derived import DerivedStream
from sonde.run.passes.crew import Crew
from sonde.run.passes.hand_out import hand_out
from sonde.run.passes.job import Job, Span

Answer = TypeVar("Answer")
PARTS = 4
MOST_UNITS = 8


@dataclass(frozen=True, eq=False)
class StreamPart(DerivedStream):
    """Some units of a stream; all other attributes are those of the whole stream."""

    inner: Stream
    bounds: tuple[int, ...]
    seed: int = 0

    def units(self, unit_size: int = UNIT_SIZE) -> list[int]:
        """Return the first and last unit of this part."""
        return list(self.bounds)


@dataclass(frozen=True)
class PartJob(Job):
    """Process a part of a stream that does not need the other parts.

    Parameters
    ----------
    bounds : tuple of int
        Where the units of the whole stream begin, and the end.
    """

    bounds: tuple[int, ...]

    @abstractmethod
    def of_part(self, part: Stream) -> Any:
        """Process one part in a worker, and return the result for the driver."""

    def work(self, start: int, stop: int) -> Any:
        """Process the units ``[start, stop)``."""
        return self.of_part(
            StreamPart(self.stream, self.bounds[start : stop + 1], self.stream.seed)
        )


def has_parts(stream: Stream) -> bool:
    """Return whether parts can be processed separately; plain arrays need all rows at once."""
    return not isinstance(stream, ArrayStream)


def in_order(job: PartJob, crew: Crew) -> Generator[Any]:
    """Yield the results of all parts in the order of the rows, however the workers finish."""
    n_workers = crew.workers if crew.ranks is None else crew.ranks.n_ranks
    spans = spans_of(len(job.bounds) - 1, n_workers)
    waiting: dict[Span, Any] = {}
    following = iter(spans)
    awaited = next(following, None)
    with closing(hand_out(job, spans, crew)) as answers:
        for span, answer in answers:
            waiting[span] = answer
            while awaited in waiting:
                yield waiting.pop(awaited)
                awaited = next(following, None)


def shared_by_ranks(
    job: PartJob, crew: Crew, settings: Sequence[Any], run: Callable[[], Answer]
) -> Answer:
    """Return what a function returns; with ranks, what it returns on rank 0.

    Parameters
    ----------
    job : PartJob
        Work of the other ranks on the parts that rank 0 hands out.
    crew : Crew
        Workers; without ranks, the function is called here.
    settings : sequence
        What has to be equal on all ranks beside the rows, as JSON.
    run : callable
        Work of rank 0, which hands out the parts by ``in_order``.
    """
    if crew.ranks is None:
        return run()
    plan = canonical_json([job.stream.identity(), list(job.bounds), job.threads, *settings])
    return crew.ranks.shared(job, hashlib.blake2b(plan.encode()).hexdigest(), run)


def spans_of(n_units: int, workers: int) -> list[Span]:
    """Return ranges of units, short enough that each worker gets several of them."""
    step = min(MOST_UNITS, max(1, n_units // (PARTS * max(1, workers))))
    edges = [*range(0, n_units, step), n_units]
    return list(itertools.pairwise(edges))
