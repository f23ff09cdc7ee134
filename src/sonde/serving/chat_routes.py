"""Addresses of the OpenAI protocol: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``.

Requests are answered one after another, in the thread of the model, or in vLLM all at once.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sonde.serving.bodies import parse_json, read_body
from sonde.serving.chat_answers import ChatAnswers
from sonde.serving.chat_pieces import TextPieces
from sonde.serving.chat_requests import ChatRequest, ProtocolError
from sonde.serving.continuing import Continued, Continuing
from sonde.serving.engine_answers import EngineAnswers
from sonde.serving.handlers import Handler, guarded
from sonde.serving.interruptions import interrupted_when_gone
from sonde.serving.limits import Limits
from sonde.serving.refusals import Refusal, frames_of
from sonde.serving.service import Service
from sonde.serving.verdicts import Verdict

OnAlarm = Literal["header", "refuse", "log"]
FILTERED = "content_filter"
"""Code and reason of the protocol for what a server withholds."""
_log = logging.getLogger("sonde")


@final
@dataclass(eq=False)
class ChatRoutes:
    """The handlers.

    Parameters
    ----------
    service : Service
    limits : Limits
    names : iterator of str
        Unpredictable ids.
    on_alarm : {"header", "refuse", "log"}, default="header"
        ``header`` says an alarm in headers and in the field ``sonde``; ``log`` writes it to the log
        too; ``refuse`` withholds the answer.
    """

    service: Service
    limits: Limits
    names: Iterator[str]
    on_alarm: OnAlarm = "header"
    _model: Continuing | None = field(default=None, init=False)
    _engine: EngineAnswers | None = field(default=None, init=False)
    _n_waiting: int = field(default=0, init=False)

    def routes(self) -> list[Route]:
        """Return the routes."""
        named: list[tuple[str, str, str, Handler]] = [
            ("/v1/chat/completions", "POST", "chat", self.chat),
            ("/v1/completions", "POST", "completions", self.completions),
            ("/v1/models", "GET", "metadata", self.models),
            ("/v1/models/{name}", "GET", "metadata", self.model),
        ]
        return [
            Route(path, guarded(self.service, route, handler, _refused, _failed), methods=[verb])
            for path, verb, route, handler in named
        ]

    async def models(self, _: Request) -> Response:
        """List the model of this server."""
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """Describe the model of this server."""
        described = self._described()
        if request.path_params["name"] != described["id"]:
            raise ProtocolError(
                404,
                f"The model {request.path_params['name']!r} does not exist. This server has "
                f"{described['id']!r}.",
                "model",
                "model_not_found",
            )
        return JSONResponse(described)

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        return await self._answered(request, is_chat=True)

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        return await self._answered(request, is_chat=False)

    def _described(self) -> dict[str, Any]:
        model = self._continuing()
        about = {
            "id": model.served.name,
            "object": "model",
            "created": 0,
            "owned_by": "sonde",
        }
        return about | {"max_model_len": model.context}

    def _continuing(self) -> Continuing:
        served = self.service.served()
        if self._model is None or self._model.served is not served:
            self._model = model = Continuing(served)
            in_thread = self.service.in_model_thread
            engine = model.engine
            self._engine = None if engine is None else EngineAnswers(model, engine, in_thread)
        return self._model

    async def _answered(self, request: Request, is_chat: bool) -> Response:
        model = self._continuing()
        body = parse_json(await read_body(request, self.limits))
        asked = ChatRequest.parse(body, is_chat, model.served.name)
        answers = ChatAnswers.of(next(self.names), asked, model, self.service.alpha)
        prompts = [model.tokens(prompt, is_chat) for prompt in asked.prompts]
        for ids in prompts:
            model.room(ids, asked.settings)
        n = len(prompts) * asked.n_choices
        if self._n_waiting + n > self.limits.queue:
            raise ProtocolError(
                429,
                f"{self._n_waiting} answers are already waited for. Send the request again later.",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        each = [_Answering(self, model, answers, ids, i, k) for i, (ids, k) in enumerate(
            (ids, k) for ids in prompts for k in range(asked.n_choices)
        )]  # fmt: skip
        lengths = list(map(len, prompts))
        if asked.streams:
            return await self._streamed(each, answers, lengths)
        try:
            with interrupted_when_gone(request):
                results = await asyncio.gather(*(one.result() for one in each))
        finally:
            for one in each:
                one.stop()
        kept = [self._checked(one.name, answer) for one, answer in zip(each, results, strict=True)]
        return JSONResponse(answers.whole(kept, lengths), headers=self._headers(kept, answers.name))

    async def _streamed(
        self, each: list["_Answering"], answers: ChatAnswers, lengths: list[int]
    ) -> Response:
        """Return an answer of server-sent events; errors of the first prompt come before it."""
        first = each[0]
        first.start()
        verdict = await first.prompt_verdict()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        headers |= _alarm_headers([verdict]) if verdict is not None else {}

        async def lines() -> AsyncIterator[str]:
            texts: list[Continued] = []
            try:
                for one in each:
                    one.start()
                for i, one in enumerate(each):
                    began = True
                    async for text in one.texts():
                        yield _event(answers.piece(i, text, first=began))
                        began = False
                    texts.append(await one.result())
                    reason = FILTERED if self._withholds(texts[-1]) else texts[-1].reason
                    self._tell(one.name, texts[-1])
                    yield _event(answers.last_piece(i, texts[-1], reason))
                if answers.request.tells_usage:
                    yield _event(answers.usage_piece(texts, lengths))
                yield "data: [DONE]\n\n"
            except ProtocolError as error:
                yield _event(error.json())
            except Exception as error:
                _log.error("a streamed answer failed: %s", frames_of(error))
                failed = ProtocolError(500, "The server failed on this request. See its log.")
                yield _event(failed.json())
            finally:
                for one in each:
                    one.stop()

        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    def _checked(self, name: str, found: Continued) -> Continued:
        """Return an answer that may be given; raise if its alarm withholds it."""
        self._tell(name, found)
        if self._withholds(found):
            raise withheld(found.whole)
        return found

    def _withholds(self, found: Continued) -> bool:
        return self.on_alarm == "refuse" and _has_alarm(found.whole)

    def _tell(self, name: str, found: Continued) -> None:
        if self.on_alarm == "log" and (_has_alarm(found.prompt) or _has_alarm(found.whole)):
            verdict = found.whole if _has_alarm(found.whole) else found.prompt
            assert verdict is not None
            method, site = verdict.loudest or ("a detector", "a site")
            _log.warning("alarm on %s: p %.3g, %s at %s", name, verdict.p, method, site)

    def _headers(self, found: list[Continued], name: str) -> dict[str, str]:
        verdicts = [v for one in found for v in (one.prompt, one.whole) if v is not None]
        return {"X-Request-Id": name, **(_alarm_headers(verdicts) if verdicts else {})}


def _refused(error: Exception) -> Response | None:
    if not isinstance(error, ProtocolError | Refusal):
        return None
    refusal = error if isinstance(error, ProtocolError) else ProtocolError.of(error)
    return JSONResponse(refusal.json(), refusal.status, refusal.headers)


def _failed() -> Response:
    refusal = ProtocolError(500, "The server failed on this request. See its log.")
    return JSONResponse(refusal.json(), 500)


@final
class _Answering:
    """One answer while it is made in the thread of the model."""

    def __init__(
        self,
        routes: ChatRoutes,
        model: Continuing,
        answers: ChatAnswers,
        ids: list[int],
        i: int,
        number: int,
    ) -> None:
        settings = answers.request.settings
        self.name, self._ids, self._model, self._routes = f"{answers.name}-{i}", ids, model, routes
        self._seed, self._settings = settings.seed + number, settings
        self._loop = asyncio.get_running_loop()
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self._said: asyncio.Future[Verdict | None] = self._loop.create_future()
        self._task: asyncio.Task[Continued] | None = None
        self.pieces: TextPieces = model.pieces(settings, self._on_piece)

    def start(self) -> None:
        """Wait for the thread of the model; once."""
        if self._task is None:
            self._routes._n_waiting += 1
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End an answer for which nobody waits any more."""
        self.pieces.cancelled.set()
        if self._task is not None and not self._task.cancel() and not self._task.cancelled():
            self._task.exception()  # of an answer that was not asked for any more

    async def result(self) -> Continued:
        """Return the whole answer."""
        self.start()
        assert self._task is not None
        return await self._task

    async def prompt_verdict(self) -> Verdict | None:
        """Return the verdict on the prompt, before the first token; raise what made it fail."""
        assert self._task is not None
        await asyncio.wait([self._said, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not self._said.done():
            await self._task
        return self._said.result() if self._said.done() else None

    async def texts(self) -> AsyncIterator[str]:
        """Yield the pieces of the text as they arrive."""
        while (text := await self._texts.get()) is not None:
            yield text

    async def _run(self) -> Continued:
        texts: list[Continued] = []
        settings = self._settings
        seeded = type(settings)(**{**vars(settings), "seed": self._seed})

        def action() -> None:
            if not self.pieces.cancelled.is_set():
                texts.append(self._model.run(self._ids, seeded, self.pieces, self._on_prompt))

        engine = self._routes._engine
        try:
            if engine is None:
                await self._routes.service.in_model_thread(action)
            else:
                given = (self._ids, seeded, self.pieces, self._on_prompt)
                texts.append(await engine.answer(*given))
        finally:
            self._routes._n_waiting -= 1
            self._loop.call_soon(self._texts.put_nowait, None)  # behind the last piece
        if not texts:
            raise asyncio.CancelledError
        if self._withheld(texts[0].prompt):
            raise withheld(texts[0].prompt)
        return texts[0]

    def _withheld(self, verdict: Verdict | None) -> bool:
        return self._routes.on_alarm == "refuse" and _has_alarm(verdict)

    def _on_prompt(self, verdict: Verdict | None) -> bool:
        """Take the verdict on the prompt, in the thread of the model."""
        if self._withheld(verdict):
            return False
        self._loop.call_soon_threadsafe(self._told, verdict)
        return True

    def _told(self, verdict: Verdict | None) -> None:
        if not self._said.done():
            self._said.set_result(verdict)

    def _on_piece(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._texts.put_nowait, text)


def withheld(verdict: Verdict | None) -> ProtocolError:
    """Return the error that stands for an answer whose alarm withholds it."""
    assert verdict is not None
    method, site = verdict.loudest or ("a detector", "a site")
    return ProtocolError(
        400,
        f"The server withholds the answer: {method} at {site} raised an alarm (p {verdict.p:.3g}).",
        code=FILTERED,
        headers=_alarm_headers([verdict]),
    )


def _alarm_headers(verdicts: list[Verdict]) -> dict[str, str]:
    """Return headers with the alarm and the least p-value of some verdicts."""
    p_values = [v.p for v in verdicts if v.p is not None]
    alarms = [v.alarm for v in verdicts if v.alarm is not None]
    alarm = "unknown" if not alarms else "true" if any(alarms) else "false"
    return {"X-Sonde-Alarm": alarm, **({"X-Sonde-P": f"{min(p_values):.6g}"} if p_values else {})}


def _has_alarm(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.alarm is True


def _event(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"
