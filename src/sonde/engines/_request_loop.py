"""One thread that runs the requests of many callers in a ``vllm.LLM``."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, final

PATIENCE = 0.1
"""Seconds for which a request may hold up the steps of all."""
Seen = Callable[[Any], None]
"""Takes each output of a request, or the error that ended it, in the thread that runs vLLM."""


@final
class RequestLoop:
    """Steps a ``vllm.LLM`` while it has requests; calls from other threads run between two steps.

    Parameters
    ----------
    llm : vllm.LLM
        Nobody else may use it from now on.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._seen: dict[str, tuple[str, Seen]] = {}
        self._held: dict[str, float] = {}
        Thread(target=self._run, name="sonde-vllm", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """True if a request is unfinished; ask between two steps."""
        return bool(self._seen)

    def call(self, action: Callable[[], Any]) -> "Future[Any]":
        """Run a function in the thread of vLLM, between two steps."""
        result: Future[Any] = Future()
        self._calls.put((action, result))
        return result

    def add(self, name: str, ids: list[int], params: Any, seen: Seen) -> None:
        """Begin a request; call it between two steps.

        Parameters
        ----------
        name : str
        ids : list of int
            The prompt.
        params : vllm.SamplingParams
        seen : callable
            Takes each output, or the error that ended the request.
        """
        own = self.llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)
        self._seen[name] = own, seen

    def hold(self, name: str) -> None:
        """Begin no step until ``resume``, or for ``PATIENCE`` seconds; call it between two steps.

        A thread that judges a first token while vLLM steps gets the interpreter now and then only:
        the token would come as late as the second one.
        """
        self._held[name] = time.monotonic() + PATIENCE

    def resume(self, *names: str) -> None:
        """Let requests, by default all, hold up no steps any more; call it between two steps."""
        for name in names or (*self._held,):
            self._held.pop(name, None)

    def end(self, name: str) -> None:
        """End a request that may be unfinished; call it between two steps."""
        self.resume(name)
        if (request := self._seen.pop(name, None)) is not None:
            self.llm.llm_engine.abort_request([request[0]], internal=True)

    def _run(self) -> None:
        while True:
            waits = not self._seen
            with suppress(Empty):
                while True:
                    _answer(*self._calls.get(block=waits))
                    waits = False
            while self._held and (left := max(self._held.values()) - time.monotonic()) > 0:
                with suppress(Empty):
                    _answer(*self._calls.get(timeout=left))
            self._held.clear()
            if self._seen:
                self._step()

    def _step(self) -> None:
        try:
            outputs = self.llm.llm_engine.step()
        except Exception as error:  # each caller is told
            failed, self._seen = self._seen, {}
            for _, seen in failed.values():
                _hand_error(seen, error)
            return
        for output in outputs:
            if (request := self._seen.get(output.request_id)) is None:
                continue
            if output.finished:
                del self._seen[output.request_id]
            try:
                request[1](output)
            except Exception as error:
                self.end(output.request_id)
                _hand_error(request[1], error)


def _hand_error(seen: Seen, error: Exception) -> None:
    with suppress(Exception):  # its caller is gone
        seen(error)


def _answer(action: Callable[[], Any], result: "Future[Any]") -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(action())
    except BaseException as error:
        result.set_exception(error)
