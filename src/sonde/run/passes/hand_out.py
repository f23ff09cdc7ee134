"""Assign a plan's ranges to workers, and collect the results.

Fits, stored rows and scores hand out their ranges of units in the same way: a ``Job`` says what a
worker does with one range, a ``Crew`` who the workers are. A range may be done twice, by a worker
that was lost after its commit and by the one that took its place; so what a job commits is the same
bytes under the same name each time, and nothing is added to anything.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sonde.run.passes._cluster import connected, import_ray
from sonde.run.passes._processes import hand_out_to_processes
from sonde.run.passes._ray import hand_out_on_ray
from sonde.run.passes.crew import Crew
from sonde.run.passes.job import Job, Span


def hand_out(job: Job, spans: Sequence[Span], crew: Crew) -> Generator[tuple[Span, Any]]:
    """Yield each range with its worker's result, in the order of completion.

    Close it, or exhaust it: workers end with it. On Ctrl-C the ranges that are being worked on are
    finished first.

    Raises
    ------
    InputError
        If the job cannot be sent, workers die, or a cluster cannot run it.
    """
    if not spans:
        return
    if crew.ranks is not None:
        yield from crew.ranks.hand_out(job, spans)
        return
    apart = hand_out_on_ray if crew.runner == "ray" else hand_out_to_processes
    yield from apart(job, spans, crew)


def check_crew(crew: Crew) -> None:
    """Raise if the requested workers are not available here.

    Raises
    ------
    InputError
        If Ray is asked for and not installed.
    """
    if crew.runner == "ray":
        import_ray()


def gathered(crew: Crew, threads: int) -> AbstractContextManager[Any]:
    """Keep one cluster connection open for all passes of a run."""
    return connected(crew, threads) if crew.runner == "ray" else nullcontext()
