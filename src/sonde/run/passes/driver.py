"""Drive one pass of a plan: choose ranges of units, assign them to workers, and commit them.

Everything that is committed goes through the ledger as an aligned range of units; nothing is ever
added to a state on disk. So a pass can be interrupted or killed anywhere and goes on from there
with the same bits.
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sonde.core.errors import SondeError, StoreError
from sonde.core.plan import Plan
from sonde.core.statistic import Learner
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.engine.requests import Request, States
from sonde.run.passes.chain import walk_chain
from sonde.run.passes.crew import Crew
from sonde.run.passes.hand_out import hand_out
from sonde.run.passes.ledger import Ledger
from sonde.run.passes.memory import COMMITS_MERGED, state_bytes
from sonde.run.passes.ranges import RangeJob, Tick, commit_range, token_in
from sonde.run.passes.threads import using_threads

ROUNDS = 3
REST = 5.0
HELD_BYTES = 2**26

_log = logging.getLogger("sonde")


class Interrupted(SondeError):
    """The user stopped a pass; committed units are kept.

    Attributes
    ----------
    partial : Outcome
        The states of what is committed.
    first : bool
        Whether it was the first pass of a run.
    """

    def __init__(self, partial: "Outcome", directory: Path | None, first: bool = True) -> None:
        self.partial, self.directory, self.first = partial, directory, first
        super().__init__(
            f"interrupted after {partial.done} of {plural(partial.total, 'unit')}"
            f"{', in training.' if partial.learning and partial.done == partial.total else '.'}"
            f"{_kept(partial, directory, first)}"
        )


@dataclass(frozen=True)
class Outcome:
    """The states and counters of a pass; ``done`` of ``total`` units.

    ``learning`` says that learners were not trained to the end.
    """

    states: States
    counters: dict[str, int]
    done: int
    total: int
    learning: bool = False

    @property
    def complete(self) -> bool:
        """True if every unit is committed and every learner is trained."""
        return self.done == self.total and not self.learning


def _kept(partial: Outcome, directory: Path | None, first: bool) -> str:
    """Return a sentence on which results a stopped pass keeps and how to continue."""
    if partial.done == 0 and first:
        advice = (
            "" if directory is None else " With a smaller --unit-size, an interruption loses less."
        )
        return f" No unit was finished, so nothing is kept; run the same command again.{advice}"
    if directory is None:
        return ""
    return (
        f" Finished units are kept in {directory}; the same command continues from there "
        "(with --resume, it fails if there is nothing to continue)."
    )


def run_pass(
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    *,
    directory: Path | None = None,
    crew: Crew = Crew(),  # noqa: B008  frozen
    fresh: bool = False,
    tick: Tick = lambda _: None,
) -> Outcome:
    """Run every unit of a plan that is not yet committed, and return the folded states.

    Parameters
    ----------
    stream : Stream
    wanted : mapping of id to Request
    plan : Plan
    directory : Path or None, default=None
        The run directory, locked by the caller; None is a temporary directory without fsync.
    crew : Crew, default=Crew()
        Who works: this process, processes beside it, or actors on Ray. The bytes are the same.
    fresh : bool, default=False
        Drop what a run of another plan left in the directory.
    tick : callable
        Called with the number of examples done since its last call; first with those of an
        earlier run.

    Raises
    ------
    Interrupted
        On Ctrl-C, after what is finished has been committed.
    """
    chain = {i: r for i, r in wanted.items() if isinstance(r.statistic, Learner)}
    rest = {i: r for i, r in wanted.items() if i not in chain}
    with _directory(directory) as (place, durable):
        ledger = Ledger(place, plan, rest, durable=durable, fresh=fresh)
        to_do = sum(plan.bounds[b] - plan.bounds[a] for a, b in ledger.missing())
        if rest and to_do < plan.n_examples:
            tick(plan.n_examples - to_do)
        try:
            if crew.is_apart and rest:
                _with_workers(ledger, stream, rest, plan, crew, tick)
            else:
                _alone(ledger, stream, rest, plan, tick, at_once=directory is None)
            _say_where(chain, crew)
            with using_threads(plan.threads):
                learned = walk_chain(place, stream, chain, plan, durable, tick)
        except KeyboardInterrupt:
            ledger.compact()
            states, counters, _ = ledger.partial()
            states = {**states, **dict.fromkeys(chain)}
            partial = Outcome(states, counters, ledger.n_done, plan.n_units, bool(chain))
            raise Interrupted(partial, directory, plan.stage == 0) from None
        states, counters = ledger.finish()
    return Outcome({**states, **learned}, counters, plan.n_units, plan.n_units)


@contextmanager
def _directory(directory: Path | None) -> Iterator[tuple[Path, bool]]:
    if directory is not None:
        yield directory, True
        return
    with tempfile.TemporaryDirectory(prefix="sonde-") as name:
        yield Path(name) / "pass.run", False


def _alone(
    ledger: Ledger,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    tick: Tick,
    at_once: bool,
) -> None:
    """Do the missing ranges in this process; a temporary run with small states commits once."""
    ranges = ledger.missing()
    if at_once and _waiting_bytes(stream, wanted, plan) <= HELD_BYTES:
        ranges = [(0, plan.n_units)]
    with using_threads(plan.threads):
        for i, (start, stop) in enumerate(ranges, 1):
            commit_range(ledger, stream, wanted, plan, start, stop, tick)
            if i % COMMITS_MERGED == 0:
                ledger.compact()


def _waiting_bytes(stream: Stream, wanted: Mapping[str, Request], plan: Plan) -> int:
    """Return the bytes of one set of states per merge level, and of the set that grows."""
    return state_bytes(wanted, stream.schema) * (plan.n_units.bit_length() + 1)


def _say_where(chain: Mapping[str, Request], crew: Crew) -> None:
    if chain and crew.is_apart:
        names = sorted({type(r.statistic).__name__ for r in chain.values()})
        _log.warning(
            "%s: trained sequentially in this process; workers run the other methods",
            ", ".join(names),
        )


def _with_workers(
    ledger: Ledger,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    crew: Crew,
    tick: Tick,
) -> None:
    """Assign ranges to workers, who merge their commits if they share the directory.

    If they do not share it, they hand back files, and this process merges them. It rests between
    merges, so that merging takes a small part of its time.
    """
    resting = 0.0
    with token_in(ledger.directory) as token:
        directory = ledger.directory.absolute()
        job = RangeJob(
            stream, crew.threads(plan.threads), dict(wanted), plan, directory, token, ledger.durable
        )
        for _ in range(ROUNDS):
            with closing(hand_out(job, ledger.missing(), crew)) as answers:
                for (start, stop), written in answers:
                    for name, content in written:
                        ledger.adopt(name, content)
                    tick(plan.bounds[stop] - plan.bounds[start])
                    if written and time.monotonic() >= resting:
                        began = time.monotonic()
                        ledger.compact()
                        resting = time.monotonic() + REST * (time.monotonic() - began)
            if not ledger.missing():
                return
    raise StoreError(
        f"run: the units that workers committed to {ledger.directory} are not visible on this "
        "machine, or are damaged. Use a directory on a file system that all machines share, "
        "or run on this machine alone."
    )
