"""Answer waiting requests together: micro-batches from a bounded queue."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sonde.core.errors import MachineError, SondeError, is_out_of_memory
from sonde.core.wording import plural
from sonde.serving.limits import Limits
from sonde.serving.refusals import Refusal, frames_of
from sonde.serving.served import Answer, Answered, Item
from sonde.tap.model.forward_errors import ABOUT_INPUTS

_log = logging.getLogger("sonde")
OF_INPUTS = (RuntimeError, ValueError, TypeError, IndexError)
"""Errors that a model raises on inputs of a size or type that it cannot read."""
MOST_SHAPES = 10_000
Seen = Callable[[Sequence[Item], Answered, float], None]


@dataclass(eq=False)
class _Waiting:
    """One input that waits for its answer."""

    item: Item
    answer: "asyncio.Future[Answer]"
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Puts inputs of one shape into batches, and gives each its own answer.

    One thread runs the model. While it works, the inputs of the next batch gather; a batch begins
    when it is full, or when its oldest input has waited long enough. If a batch fails, its inputs
    are run again one by one, so that only the faulty ones fail.

    Parameters
    ----------
    run : callable
        From items to ``Answered``; called in the thread of the model.
    limits : Limits
    seen : callable
        Called in that thread with the items of each forward, their answers, and its seconds.
    most : callable
        Returns the most inputs of a forward.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Answered],
        limits: Limits,
        seen: Seen,
        most: Callable[[], int],
    ) -> None:
        self._run, self._limits, self._seen, self._most = run, limits, seen, most
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "sonde-model")
        self._rate, self._answered = 0.0, set[Hashable]()
        self._task: asyncio.Task[None] | None = None
        self.n_running = 0
        self._running_since: float | None = None

    @property
    def seconds_running(self) -> float:
        """Seconds since the batch began that runs now; 0 if none runs."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def n_waiting(self) -> int:
        """Number of inputs in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Start to answer, in the running event loop."""
        self._task = asyncio.create_task(self._serve())

    async def stop(self, seconds: float) -> None:
        """Answer waiting inputs for at most some seconds, then stop."""
        until = time.monotonic() + seconds
        while (self._queue or self.n_running) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        for one in self._queue:
            if not one.answer.done():
                one.answer.set_exception(
                    Refusal(503, "The server is stopping. Send the request again later.")
                )
        self._queue.clear()
        self._thread.shutdown(wait=False)

    async def call(self, action: Callable[[], None]) -> None:
        """Run a function in the model's thread, between two batches."""
        await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def check_room(self, n: int, n_preparing: int = 0) -> None:
        """Refuse inputs for which the queue has no room.

        Parameters
        ----------
        n : int
            Number of new inputs.
        n_preparing : int, default=0
            Inputs on their way to the queue.

        Raises
        ------
        Refusal
            413 if they never fit, 429 if the queue is full.
        """
        most, queued = self._limits.queue, len(self._queue) + n_preparing
        if n > most:
            raise Refusal(
                413,
                f"Expected at most {plural(most, 'input')}, which is the length of the queue, got "
                f"{n:,}. Send several requests.",
            )
        if queued + n > most:
            wait = max(1, math.ceil(queued / self._rate)) if self._rate else 1
            raise Refusal(
                429,
                f"{plural(queued, 'input is', 'inputs are')} already queued. Send the request "
                f"again in {wait} s.",
                {"Retry-After": str(wait)},
            )

    async def answers(self, items: Sequence[Item]) -> list[Answer | Refusal]:
        """Return the answer to each input of one request, or why the model gave none.

        Raises
        ------
        Refusal
            429 if the queue is full.
        """
        self.check_room(len(items))
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(item, loop.create_future()) for item in items]
        self._queue.extend(waiting)
        self._arrived.set()
        try:
            return [await _outcome(one.answer) for one in waiting]
        finally:
            for one in waiting:
                if one.answer.done() and not one.answer.cancelled():
                    one.answer.exception()
                one.answer.cancel()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            self.n_running, self._running_since = len(batch), time.monotonic()
            try:
                outcomes = await loop.run_in_executor(
                    self._thread, self._outcomes, [one.item for one in batch]
                )
            except Exception as error:
                outcomes = [error] * len(batch)
            finally:
                self.n_running, self._running_since = 0, None
            for one, outcome in zip(batch, outcomes, strict=True):
                if one.answer.done():
                    continue
                if isinstance(outcome, BaseException):
                    one.answer.set_exception(outcome)
                else:
                    one.answer.set_result(outcome)

    async def _next(self) -> list[_Waiting]:
        """Return the inputs of the next batch, with the shape of the oldest input."""
        while True:
            while self._queue and self._queue[0].answer.done():
                self._queue.popleft()
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            left = self._queue[0].since + self._limits.wait_seconds - time.monotonic()
            chosen = self._same_shape()
            if len(chosen) >= self._most() or left <= 0:
                taken = {id(one) for one in chosen}
                self._queue = deque(one for one in self._queue if id(one) not in taken)
                return chosen
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _same_shape(self) -> list[_Waiting]:
        """Return inputs that can share a batch with the oldest one, with little padding."""
        first, most, batch = self._queue[0].item, self._most(), list[_Waiting]()
        shortest = longest = first.length
        for one in self._queue:
            low, high = min(shortest, one.item.length), max(longest, one.item.length)
            if one.item.shape != first.shape or one.answer.done() or (low < high >= 2 * low):
                continue
            batch.append(one)
            shortest, longest = low, high
            if len(batch) == most:
                break
        return batch

    def _outcomes(self, items: Sequence[Item]) -> list[Any]:
        """Return an answer or an exception for each item; in the thread of the model."""
        began = time.monotonic()
        try:
            answered = self._run(items)
        except Exception as error:
            if len(items) > 1:
                return [self._outcomes([item])[0] for item in items]
            return [_refused(error, items[0].shape in self._answered)]
        if len(self._answered) < MOST_SHAPES:
            self._answered.update(item.shape for item in items)
        seconds = time.monotonic() - began
        rate = len(items) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        try:
            self._seen(items, answered, seconds)
        except Exception as error:  # watching must not take an answer from anybody
            _log.error("the monitoring of the traffic failed: %s: %s", type(error).__name__, error)
        return list(answered.answers)


async def _outcome(answer: "asyncio.Future[Answer]") -> Answer | Refusal:
    try:
        return await answer
    except Refusal as refusal:
        return refusal


def _refused(error: Exception, is_known: bool) -> Refusal:
    """Return why the model rejected an input, without the input itself.

    Parameters
    ----------
    error : Exception
    is_known : bool
        Whether the model has answered inputs of this shape. Then an error that does not name a
        size or a type is a fault of the model and not of the client.
    """
    if isinstance(error, MachineError) or is_out_of_memory(error):
        _log.error("memory ran out in a forward pass")
        return Refusal(503, "The model ran out of memory on this input. Send a smaller input.")
    is_about_inputs = not is_known or ABOUT_INPUTS.search(str(error)) is not None
    if isinstance(error, SondeError) or (is_about_inputs and isinstance(error, OF_INPUTS)):
        _log.info("an input was refused by the model: %s", type(error).__name__)
        return Refusal(
            400,
            f"The model raised {type(error).__name__} on this input: its size, its type or "
            "the range of its values is wrong.",
        )
    _log.error("a forward pass failed:\n%s", frames_of(error))
    return Refusal(
        500,
        f"The model failed on this input ({type(error).__name__}). The server continues "
        "with other inputs.",
    )
