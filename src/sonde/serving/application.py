"""``sonde.serving.app``: the ASGI application."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from sonde.serving.answers import answers_json
from sonde.serving.authentication import TokenMiddleware
from sonde.serving.binary_tensors import LENGTH_HEADER, split_body, with_data
from sonde.serving.bodies import (
    FORM,
    JSON,
    check_count,
    form_files,
    inputs_in,
    parse_json,
    read_body,
)
from sonde.serving.chat_routes import ChatRoutes, OnAlarm
from sonde.serving.handlers import Handler, guarded
from sonde.serving.interruptions import interrupted_when_gone
from sonde.serving.limits import Limits
from sonde.serving.open_inference import VERSION, infer_json, inputs_of, metadata
from sonde.serving.openapi import openapi
from sonde.serving.other_pages import OwnPagesMiddleware
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer
from sonde.serving.service import Service
from sonde.serving.traffic import Schedule

ID_BYTES, IDS = 8, 256
"""Random bytes in the name of a request; names that are drawn at once."""
STALL_SECONDS, PATIENCE = 120.0, 0.1
"""Seconds of a forward pass that hangs; and after which it matters whether a client waits."""
EVENTS, MOST_LISTENING = 5, 16
"""Seconds of one stream of events, which a server that stops waits for; and streams at once."""
UNCOMMITTED = (
    "The last commit of the traffic failed. The server answers, and tries again; see its log."
)
CLIENT = "x-client"
"""Header with the name of the caller."""
OCTETS = "application/octet-stream"
TENSORS = (JSON, OCTETS, "")
"""Types of a body of tensors; Triton's client names none."""


def app(
    model: Any,
    fitted: Any = None,
    *,
    alpha: float = 0.05,
    token: str | None = None,
    limits: Limits | None = None,
    log: str | Path | None = None,
    schedule: Schedule | None = None,
    calibrate: str | Path | None = None,
    keep_inputs: int = 0,
    registry: Any = None,
    shared: str | Path | None = None,
    stall_seconds: float = STALL_SECONDS,
    on_alarm: OnAlarm = "header",
    batch_invariant: bool = False,
    client_field: str | None = None,
    **options: Any,
) -> Starlette:
    """Return the ASGI application that serves a model with its fitted detectors.

    Run it with any ASGI server, or mount it in an application of your own. The model is loaded
    when the server starts, or at the first request if it is mounted.

    Parameters
    ----------
    model : Model, nn.Module, str, or function
        What ``sonde.load`` takes; or a function without arguments that returns it.
    fitted : Fitted, path or None, default=None
        The probe: calibrated detectors of this model.
    alpha : float, default=0.05
        False-alarm rate of the field ``alarm``.
    token : str or None, default=None
        What a client must bring for every address but health.
    limits : Limits, optional
        Limits on sizes, counts and times; by default those of ``Limits()``.
    log : path or None, default=None
        Folder of the traffic's statistics; None commits nothing.
    schedule : Schedule, optional
        When traffic is committed.
    calibrate : path or None, default=None
        A calibration of the probe, taken when the server starts and whenever the file changes.
    keep_inputs : int, default=0
        Inputs of the last alarms that the dashboard may show.
    registry : prometheus_client.CollectorRegistry, optional
        Where metrics are registered; by default one of its own.
    shared : path or None, default=None
        Folder through which several replicas of one server share feedback, changes and metrics;
        with ``log`` that folder is used. None for a single replica.
    stall_seconds : float, default=120.0
        After how many seconds of one forward pass the server counts as hanging.
    on_alarm : {"header", "refuse", "log"}, default="header"
        What an alarm does in answers of the OpenAI protocol: it is said in headers and in the field
        ``sonde``, withholds the answer, or is written to the log too.
    batch_invariant : bool, default=False
        Whether scores have the bits of ``sonde.score(..., batch_invariant=True)``, whatever else is
        asked at the same time. If not, they equal those of ``sonde.score`` to rounding.
    client_field : str or None, default=None
        Field of an input that names its caller; the model does not read it. Inputs without it, and
        all inputs if None, are those of the header ``X-Client``.
    **options
        Named options of ``sonde.read`` that say how items become inputs, such as
        ``number_columns`` or ``image_size``.

    Returns
    -------
    Starlette

    Examples
    --------
    >>> from starlette.testclient import TestClient
    >>> from torch import nn
    >>> with TestClient(app(nn.Linear(2, 3))) as client:
    ...     client.get("/v2/health/live").status_code
    200
    """
    limits = limits or Limits()
    service = Service(
        model,
        fitted,
        alpha=alpha,
        limits=limits,
        log=log,
        schedule=schedule or Schedule(),
        calibrate=calibrate,
        keep_inputs=keep_inputs,
        registry=registry,
        shared=shared,
        stall_seconds=stall_seconds,
        batch_invariant=batch_invariant,
        client_field=client_field,
        options=options,
    )
    handlers = _Handlers(service, limits)
    chats = ChatRoutes(service, limits, _random_names(), on_alarm)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if shared is None:
            service.start()
        else:  # other replicas answer meanwhile
            await service.loaded()
        yield
        await service.stop()

    guard: Any = Middleware(OwnPagesMiddleware)  # type: ignore[arg-type]
    if token is not None:
        guard = Middleware(TokenMiddleware, token=token)  # type: ignore[arg-type]
    application = Starlette(
        routes=[*handlers.routes(), *chats.routes()],
        middleware=[guard],
        lifespan=lifespan,
        exception_handlers={404: _no_address, 405: _no_address},
    )
    application.state.service = service
    return application


def _kind_of(request: Request) -> str:
    """Return the type of a request's body; empty if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _require_json(kind: str) -> None:
    if kind != JSON:
        raise Refusal(415, f"Expected the header 'Content-Type: {JSON}'.")


async def _no_address(request: Request, error: Any) -> Response:
    """Answer that this address does not exist."""
    code, headers = int(error.status_code), None
    if code == 405:  # several routes may have one path
        matched = (route for route in request.app.routes if route.matches(request.scope)[0].value)
        verbs = {verb for route in matched for verb in route.methods or ()}
        headers = {"Allow": ", ".join(sorted(verbs))}
    return JSONResponse(
        {
            "error": f"No path of this server accepts this {request.method} request. GET "
            "/openapi.json lists the paths."
        },
        code,
        headers,
    )


def _random_names() -> Iterator[str]:
    """Yield unpredictable names for requests.

    Each call of the operating system hands the interpreter to the thread of the model; many names
    share one.
    """
    while True:
        digits = secrets.token_hex(ID_BYTES * IDS)
        yield from (digits[i : i + 2 * ID_BYTES] for i in range(0, len(digits), 2 * ID_BYTES))


class _Handlers:
    """A handler for each address."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service, self.limits, self.n_listening = service, limits, 0
        self._names = _random_names()

    def routes(self) -> list[Route]:
        """Return the routes of the endpoints."""
        named: list[tuple[str, str, str, Handler]] = [  # the busiest first: they are tried in order
            ("/predict", "POST", "predict", self.predict),
            ("/v2/models/{name}/infer", "POST", "infer", self.infer),
            ("/v2/health/live", "GET", "health", self.live),
            ("/v2/health/ready", "GET", "health", self.ready),
            ("/v2", "GET", "metadata", self.server),
            ("/v2/models/{name}", "GET", "metadata", self.model),
            ("/v2/models/{name}/ready", "GET", "metadata", self.model_ready),
            ("/v2/models/{name}/versions/{version}", "GET", "metadata", self.model),
            ("/v2/models/{name}/versions/{version}/ready", "GET", "metadata", self.model_ready),
            ("/v2/models/{name}/versions/{version}/infer", "POST", "infer", self.infer),
            ("/feedback", "POST", "feedback", self.feedback),
            ("/feedback", "GET", "feedback", self.accuracy),
            ("/changes", "GET", "metadata", self.changes),
            ("/changes/ack", "POST", "feedback", self.acknowledge),
            ("/metrics", "GET", "metrics", self.metrics),
            ("/openapi.json", "GET", "metadata", self.openapi),
            ("/", "GET", "page", self.page),
            ("/events", "GET", "page", self.events),
        ]
        return [
            Route(path, guarded(self.service, name, handler, _refused, _failed), methods=[verb])
            for path, verb, name, handler in named
        ]

    async def live(self, _: Request) -> Response:
        """Report whether the process runs and no forward pass hangs."""
        if not self.service.is_stalled:
            return JSONResponse({"live": True})
        seconds = f"{self.service.stalled_for:.0f}"
        error = f"A forward pass has been running for {seconds} s. Restart the server."
        return JSONResponse({"live": False, "error": error}, 503)

    async def ready(self, _: Request) -> Response:
        """Report whether the model can answer."""
        self.service.start()
        if self.service.failure is not None:
            return JSONResponse({"ready": False, "error": self.service.failure}, 503)
        is_ready, fails = self.service.is_ready, self.service.monitor.is_failing
        warning = {"warning": UNCOMMITTED} if fails else {}
        return JSONResponse({"ready": is_ready, **warning}, 200 if is_ready else 503)

    async def server(self, _: Request) -> Response:
        """Describe the server."""
        from sonde import __version__

        return JSONResponse(
            {"name": "sonde", "version": __version__, "extensions": ["sonde", "binary_tensor_data"]}
        )

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        return JSONResponse(metadata(self._named(request)))

    async def model_ready(self, request: Request) -> Response:
        """Report whether the model can answer."""
        self._named(request)
        return JSONResponse({"ready": True})

    def _named(self, request: Request) -> Any:
        served = self.service.served()
        if request.path_params["name"] != served.name:
            raise Refusal(
                404, f"Expected the model {served.name!r}, the only model of this server."
            )
        if request.path_params.get("version", VERSION) != VERSION:
            raise Refusal(404, f"Expected version {VERSION}, the only version of the model.")
        return served

    async def infer(self, request: Request) -> Response:
        """Answer a request of the Open Inference Protocol."""
        served = self._named(request)
        if _kind_of(request) not in TENSORS:
            raise Refusal(415, f"Expected a body of {JSON}, with or without binary tensors.")
        body = await read_body(request, self.limits)
        head, content = split_body(body, request.headers.get(LENGTH_HEADER))
        asked = with_data(parse_json(head), content)
        rows = self.service.rows()
        inputs = inputs_of(asked, served, rows, self.limits)
        name, answers = await self._answered(request, inputs, len(body))
        for one in answers:
            if one.refusal is not None:  # a tensor has no room for the reason
                raise one.refusal
        head, parts = infer_json(served, name, asked, answers)
        if not parts:
            return JSONResponse(head)
        text = json.dumps(head).encode()
        headers = {LENGTH_HEADER: f"{len(text)}"}
        return Response(b"".join([text, *parts]), media_type=OCTETS, headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answer texts, rows of a table, arrays or images."""
        self.service.served()
        kind = _kind_of(request)
        if kind == FORM:
            body = await read_body(request, self.limits)
            inputs: list[Any] = [*await form_files(request, body, self.limits)]
            check_count(len(inputs), self.limits)
        else:
            _require_json(kind)
            body = await read_body(request, self.limits)
            inputs = inputs_in(parse_json(body), self.limits)
        name, answers = await self._answered(request, inputs, len(body))
        return JSONResponse(answers_json(name, answers, self.service.alpha))

    async def _json(self, request: Request) -> bytes:
        _require_json(_kind_of(request))
        return await read_body(request, self.limits)

    async def _answered(
        self, request: Request, inputs: Sequence[Any], size: int
    ) -> tuple[str, list[Answer]]:
        name = next(self._names)
        client = request.headers.get(CLIENT, "")
        with interrupted_when_gone(request, PATIENCE):  # no forward pass for a client that has gone
            return name, await self.service.answer(name, inputs, size, client)

    async def feedback(self, request: Request) -> Response:
        """Record the correct answer to an input."""
        body = parse_json(await self._json(request))
        each = body.get("feedback", [body])
        if not isinstance(each, list) or not all(isinstance(one, dict) for one in each):
            raise Refusal(400, 'Expected {"id": "...", "truth": "the class"}.')
        check_count(len(each), self.limits)
        judgements = self.service.judge(each)
        refused = [one for one in judgements if isinstance(one, Refusal)]
        taken = [one for one in judgements if not isinstance(one, Refusal)]
        if refused and not taken:
            raise refused[0]
        counted: dict[str, Any] = {"taken": len(taken), "correct": sum(taken)}
        if refused:
            counted["refused"] = [{"error": r.sentence, "status": r.status} for r in refused]
        return JSONResponse(counted)

    async def accuracy(self, _: Request) -> Response:
        """Return the accuracy according to feedback."""
        return JSONResponse(self.service.monitor.accuracy())

    async def changes(self, _: Request) -> Response:
        """Return the changes of the traffic, from the first one on."""
        return JSONResponse({"events": self.service.monitor.events()})

    async def acknowledge(self, request: Request) -> Response:
        """End the change that lasts: the most recent traffic is the new normal."""
        await self._json(request)
        return JSONResponse({"acknowledged": await self.service.acknowledge()})

    async def metrics(self, _: Request) -> Response:
        """Return all metrics in the text format of Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(self.service.metrics(), headers={"Content-Type": kind})

    async def page(self, _: Request) -> Response:
        """Return the dashboard: a page that loads nothing from other hosts."""
        nonce = secrets.token_urlsafe(16)
        text = resources.files("sonde.serving").joinpath("dashboard.html").read_text("utf-8")
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(text.replace("NONCE", nonce), headers=headers)

    async def events(self, request: Request) -> Response:
        """Send the state of the dashboard once a second; browsers reconnect after the end."""
        if self.n_listening >= MOST_LISTENING:
            raise Refusal(
                429, "Too many dashboards are open. Close another dashboard.", {"Retry-After": "5"}
            )

        async def lines() -> AsyncIterator[str]:
            self.n_listening += 1
            try:
                yield "retry: 300\n\n"
                for _ in range(EVENTS):
                    yield f"data: {json.dumps(self.service.state())}\n\n"
                    if self.service.is_stopping or await request.is_disconnected():
                        return
                    await asyncio.sleep(1)
            finally:
                self.n_listening -= 1

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    async def openapi(self, _: Request) -> Response:
        """Describe the endpoints, as an OpenAPI document."""
        return JSONResponse(openapi(self.service))


def _refused(error: Exception) -> Response | None:
    if not isinstance(error, Refusal):
        return None
    return JSONResponse({"error": error.sentence}, error.status, error.headers)


def _failed() -> Response:
    sentence = "The server failed on this request. See the server's log for the cause."
    return JSONResponse({"error": sentence}, 500)
