"""Requests that end early: the client has left, or the body takes too long.

``asyncio.timeout`` and a task that waits for the client would cost each request more than its
answer's JSON, so both are built on timers.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from sonde.serving.refusals import Refusal


@contextmanager
def interruptible(refusal: Callable[[], Refusal]) -> Iterator[Callable[[], None]]:
    """Yield a function that cancels what runs inside, which then raises a refusal.

    Parameters
    ----------
    refusal : callable
        Returns what is raised in place of the cancellation.
    """
    task, is_interrupted = asyncio.current_task(), False
    assert task is not None  # a coroutine of the application runs in a task

    def interrupt() -> None:
        nonlocal is_interrupted
        is_interrupted = True
        task.cancel()

    try:
        yield interrupt
    except asyncio.CancelledError:
        if is_interrupted and not task.uncancel():
            raise refusal() from None
        raise


@contextmanager
def interrupted_after(seconds: float, refusal: Callable[[], Refusal]) -> Iterator[None]:
    """Cancel what runs inside after some seconds, and raise a refusal.

    Parameters
    ----------
    seconds : float
    refusal : callable
        Returns what is raised.
    """
    with interruptible(refusal) as interrupt:
        timer = asyncio.get_running_loop().call_later(seconds, interrupt)
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def interrupted_when_gone(request: Request, patience: float = 0.0) -> Iterator[None]:
    """Cancel what runs inside if the client of the request disconnects.

    Parameters
    ----------
    request : Request
        Its body was read.
    patience : float, default=0.0
        Seconds until the connection is watched, which takes a task of its own.

    Raises
    ------
    Refusal
        499 if the client has gone.
    """
    loop, listening = asyncio.get_running_loop(), list[asyncio.Task[None]]()
    with interruptible(_gone) as interrupt:

        async def listen() -> None:
            if (await request.receive())["type"] == "http.disconnect":
                interrupt()

        timer = loop.call_later(patience, lambda: listening.append(loop.create_task(listen())))
        try:
            yield
        finally:
            timer.cancel()
            for one in listening:
                one.cancel()


def _gone() -> Refusal:
    return Refusal(499, "The client disconnected before the answer.")
