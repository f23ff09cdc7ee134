"""Ray actors that work through a plan's ranges; the driver only sends ranges and reads results.

Nothing is left to Ray's own retries: an actor that dies gives its ranges back, another takes its
place, and a range at which several died ends the run. A long time without any answer ends it too.
"""

import logging
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sonde.core.errors import InputError, MachineError
from sonde.run.passes._actors import Worker, WorkerFailure, renumbered
from sonde.run.passes._cluster import ActorNeeds, connected, n_actors, state_of
from sonde.run.passes.crew import Crew
from sonde.run.passes.job import Job, Span, can_read

IN_FLIGHT = 2
MOST_DEATHS = 4
FINISH_SECONDS = 60.0
LOOK_SECONDS = 1.0
USUAL_TIMES = 20

_log = logging.getLogger("sonde")


def hand_out_on_ray(job: Job, spans: Sequence[Span], crew: Crew) -> Generator[tuple[Span, Any]]:
    """Yield each range with its result; see ``hand_out``."""
    with connected(crew, job.threads) as ray:
        needs = ActorNeeds(job.threads, len(job.devices()))
        asked = min(crew.workers, len(spans))
        n = min(n_actors(ray, needs, asked), len(spans))
        floor = _Floor(ray, needs, crew.patience_seconds, deque(spans), job)
        try:
            for _ in range(n):
                floor.hire()
            while floor.has_work:
                yield from floor.hear()
        except (KeyboardInterrupt, GeneratorExit) as stop:
            answers = floor.finish()
            if isinstance(stop, KeyboardInterrupt):
                yield from answers
            raise
        finally:
            floor.close()


@dataclass(eq=False)
class _Hand:
    """An actor and its ranges, oldest first."""

    actor: Any
    name: str
    started: Any
    flying: dict[Any, Span] = field(default_factory=dict[Any, Span])
    busy_since: float = 0.0


class _Floor:
    """The actors of one pass, the ranges that wait, and how long steps take."""

    def __init__(
        self, ray: Any, needs: ActorNeeds, patience_seconds: float, waiting: deque[Span], job: Job
    ) -> None:
        self._ray, self._needs, self._waiting = ray, needs, waiting
        self._patience = patience_seconds
        self._payload = ray.put(_packed(ray, job))
        self._readable = can_read(job.stream)
        self._places = renumbered(job.devices())
        self._hands: list[_Hand] = []
        self._deaths: Counter[Span | None] = Counter()
        self._taken: list[float] = []
        self._last, self._n_hired = time.monotonic(), 0

    @property
    def has_work(self) -> bool:
        """True if a range is waiting or in work."""
        return bool(self._waiting) or any(hand.flying for hand in self._hands)

    def hire(self) -> None:
        """Start an actor; it receives ranges once it can read model and data."""
        options = {"num_cpus": self._needs.cpus, "num_gpus": self._needs.gpus}
        kind = self._ray.remote(Worker).options(max_restarts=0, max_task_retries=0, **options)
        actor = kind.remote()
        started = actor.begin.remote(self._payload, self._readable, sys.path, self._places)
        self._n_hired += 1
        self._hands.append(_Hand(actor, f"worker {self._n_hired}", started))

    def hear(self) -> list[tuple[Span, Any]]:
        """Wait until a message arrives, and return the results that came.

        Raises
        ------
        InputError
            If nothing came for too long, or too many workers died.
        """
        refs = {ref: hand for hand in self._hands for ref in (hand.started, *hand.flying) if ref}
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=LOOK_SECONDS)
        if not ready:
            self._check_patience()
            return []
        self._last = time.monotonic()
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        answers = []
        for ref in ready:
            if refs[ref] in self._hands:
                answers += self._heard(refs[ref], ref)
        return answers

    def _heard(self, hand: _Hand, ref: Any) -> list[tuple[Span, Any]]:
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._replace(hand, error)
            return []
        if isinstance(answer, WorkerFailure):
            raise answer.error()
        if ref == hand.started:
            hand.started = None
            _log.debug("%s is ready as process %d", hand.name, answer)
            self._give(hand)
            return []
        span = hand.flying.pop(ref)
        self._taken.append(self._last - hand.busy_since)
        self._deaths[None] = 0
        self._give(hand)
        return [(span, answer)]

    def _give(self, hand: _Hand) -> None:
        hand.busy_since = time.monotonic()
        while self._waiting and len(hand.flying) < IN_FLIGHT:
            span = self._waiting.popleft()
            hand.flying[hand.actor.work.remote(*span)] = span

    def _replace(self, hand: _Hand, error: Exception) -> None:
        """Put the ranges of a dead worker back into the queue, and start another worker.

        Raises
        ------
        InputError
            If workers keep dying at the same range, or before they begin.
        """
        spans = list(hand.flying.values())
        reason = _reason_of(error)
        at = None if hand.started is not None else (spans[0] if spans else None)
        self._deaths[at] += 1
        if self._deaths[at] >= MOST_DEATHS:
            where = "before they began" if at is None else f"at units {at[0]} to {at[1] - 1}"
            raise MachineError(
                f"run: {MOST_DEATHS} workers died {where}, the last: {reason} Their memory "
                "may have run out: take a smaller --batch-size or fewer --workers. Committed "
                "units are kept."
            ) from error
        _log.warning(
            "%s was lost; its %d ranges are given to other workers: %s",
            hand.name,
            len(spans),
            reason[:200],
        )
        self._hands.remove(hand)
        self._waiting.extend(spans[:1])  # it may be what kills: others first
        self._waiting.extendleft(reversed(spans[1:]))
        idle = [h for h in self._hands if h.started is None and not h.flying]
        for other in idle:
            self._give(other)
        if self._waiting:
            self.hire()

    def _check_patience(self) -> None:
        usual = statistics.median(self._taken) if self._taken else 0.0
        limit = max(self._patience, USUAL_TIMES * usual)
        if time.monotonic() - self._last <= limit:
            return
        waiting = [hand.name for hand in self._hands if hand.started is not None]
        at = [span for hand in self._hands for span in hand.flying.values()]
        stuck = f"units {at[0][0]} to {at[0][1] - 1} are being worked on" if at else ""
        never = f"{', '.join(waiting)} did not start" if waiting else ""
        raise MachineError(
            f"run: no worker has answered for {limit:.0f} seconds: "
            f"{'; '.join(filter(None, (stuck, never)))}. Machines: {state_of(self._ray)}. "
            "Committed units are kept; run the same command again."
        )

    def finish(self) -> list[tuple[Span, Any]]:
        """Wait for each worker's current range, and return the results that came."""
        current = {next(iter(h.flying)): h for h in self._hands if h.flying}
        if not current:
            return []
        ready, _ = self._ray.wait(list(current), num_returns=len(current), timeout=FINISH_SECONDS)
        answers = []
        for ref in ready:
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayError:
                continue
            if not isinstance(answer, WorkerFailure):
                answers.append((current[ref].flying[ref], answer))
        return answers

    def close(self) -> None:
        """End the actors."""
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands.clear()


def _packed(ray: Any, job: Job) -> np.ndarray:
    """Return a job as bytes that workers unpickle without a copy."""
    try:
        return np.frombuffer(ray.cloudpickle.dumps(job), dtype=np.uint8)
    except Exception as error:  # whatever copying a user's objects may raise
        raise InputError(
            f"run: the model or the data cannot be sent to other processes: {error}. Give them as "
            "files, names or module-level classes, or use --runner local --workers 0."
        ) from error


def _reason_of(error: Exception) -> str:
    """Return the lines of Ray's message that give the cause, without ids."""
    lines = [line.strip() for line in str(error).splitlines()]
    texts = [line for line in lines if line and not line.startswith(("actor_id:", "namespace:"))]
    return " ".join(texts)[:400]
