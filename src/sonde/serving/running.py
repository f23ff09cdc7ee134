"""A server on this machine: the application behind uvicorn, with safe addresses and signals."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from multiprocessing import parent_process
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, final

from sonde.core.errors import InputError
from sonde.engines.vllm import require_vllm, shared_on_vllm
from sonde.run.fitting.fitted import as_fitted
from sonde.run.reading.load import load
from sonde.serving.authentication import read_token
from sonde.serving.connections import limited_protocol
from sonde.serving.limits import Limits
from sonde.serving.service import Service
from sonde.serving.traffic import Schedule

_log = logging.getLogger("sonde")
SETTINGS = "SONDE_SERVE"
"""Environment variable that hands the settings, without the token, to further processes."""
LOCAL = ("127.0.0.1", "localhost")
LOOK_SECONDS = 0.02
KEEP_SECONDS = 75
"""How long an idle connection stays open: longer than clients and load balancers reuse one, as a
request that meets the end of its connection is lost.
"""


@final
@dataclass(frozen=True)
class Settings:
    """Settings of ``sonde serve``; every process builds its application from them.

    Parameters
    ----------
    model : str
    probe, token_file, log, calibrate : str or None
    host, port
    alpha : float
    replicas : int
    threads : int or None
        Of torch in each replica; None divides the processors.
    keep_inputs : int
    stall : float
        Seconds of one forward pass after which the server counts as hanging.
    shared : str or None
        Folder through which replicas share what they know; None for one replica, and for several
        before ``sharing``.
    batch_invariant : bool
        Whether scores have the same bits in any batch.
    client_field : str or None
        Field of an input that names its caller.
    quiet : bool
        Whether nothing is printed when the model is served.
    on_alarm : {"header", "refuse", "log"}
    engine : {"transformers", "vllm"}
    model_options, options : dict
        Named options of ``sonde.load`` and of ``sonde.read``.
    """

    model: str
    probe: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    alpha: float = 0.05
    token_file: str | None = None
    log: str | None = None
    calibrate: str | None = None
    replicas: int = 1
    threads: int | None = None
    keep_inputs: int = 0
    stall: float = 120.0
    shared: str | None = None
    batch_invariant: bool = False
    client_field: str | None = None
    quiet: bool = False
    on_alarm: Literal["header", "refuse", "log"] = "header"
    engine: Literal["transformers", "vllm"] = "transformers"
    limits: Limits = field(default_factory=Limits)
    schedule: Schedule = field(default_factory=Schedule)
    model_options: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def text(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Settings":
        """Return the settings from the JSON of ``text``."""
        fields = json.loads(text)
        limits, schedule = Limits(**fields.pop("limits")), Schedule(**fields.pop("schedule"))
        return cls(limits=limits, schedule=schedule, **fields)

    @property
    def is_local(self) -> bool:
        """True if only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def check(settings: Settings) -> None:
    """Refuse settings that are unsafe or cannot work, before anything is loaded.

    Raises
    ------
    InputError
        With what to do.
    StateError
        If the probe cannot be loaded.
    """
    if settings.token_file is not None:
        read_token(settings.token_file)
    elif not settings.is_local:
        raise InputError(
            f"--host: expected a --token-file, because other machines can reach {settings.host}. "
            "Create a token: openssl rand -hex 32 > token, and pass --token-file token."
        )
    if not 0 <= settings.port < 2**16:
        raise InputError(f"--port: expected a number from 0 to 65535, got {settings.port}.")
    if settings.replicas < 1:
        raise InputError(f"--replicas: expected at least 1, got {settings.replicas}.")
    if settings.engine == "vllm":
        _check_vllm(settings)
    if settings.probe is not None and not Path(settings.probe).is_file():
        raise InputError(f"serve: there is no file {settings.probe}. Fit one with sonde fit.")
    if settings.probe is not None:  # a server whose probe is damaged would never be ready
        as_fitted(settings.probe, "serve")
    if settings.calibrate is not None and settings.probe is None:
        raise InputError(
            "--calibrate: expected a PROBE with it, whose detectors the file calibrates."
        )


def _check_vllm(settings: Settings) -> None:
    require_vllm()
    if settings.replicas > 1:
        raise InputError(
            f"--replicas: expected 1 with --engine vllm, which answers many requests at once, got "
            f"{settings.replicas}. Start several servers at ports of their own."
        )
    if settings.batch_invariant:
        raise InputError(
            "--batch-invariant: expected an engine that reads each text by itself; vLLM reads many "
            "at once. Leave out --batch-invariant or --engine vllm."
        )


@contextmanager
def sharing(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with a folder that the replicas share; by default it ends with them."""
    if settings.log is not None:
        yield replace(settings, shared=settings.log)
        return
    with tempfile.TemporaryDirectory(prefix="sonde-serve-", ignore_cleanup_errors=True) as folder:
        yield replace(settings, shared=folder)


def made(
    settings: Settings,
    when_failed: Callable[[], None] | None = None,
    when_ready: Callable[[], None] | None = None,
) -> Any:
    """Return the application for some settings; the model is loaded at server start.

    Parameters
    ----------
    settings : Settings
    when_failed, when_ready : function, optional
        Called if the model could not be loaded, and when it can answer.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from sonde.serving.application import app

    _set_threads(settings)

    def model() -> Any:
        if settings.engine == "vllm":  # it chooses its own device
            return shared_on_vllm(
                load(settings.model, **{**settings.model_options, "device": "cpu"})
            )
        return load(settings.model, **settings.model_options)

    token = None if settings.token_file is None else read_token(settings.token_file)
    application = app(
        model,
        settings.probe,
        alpha=settings.alpha,
        token=token,
        limits=settings.limits,
        log=settings.log,
        schedule=settings.schedule,
        keep_inputs=settings.keep_inputs,
        calibrate=settings.calibrate,
        shared=settings.shared,
        stall_seconds=settings.stall,
        on_alarm=settings.on_alarm,
        batch_invariant=settings.batch_invariant,
        client_field=settings.client_field,
        **settings.options,
    )
    service = service_of(application)
    service.when_failed, service.when_ready = when_failed, when_ready
    if token is not None:
        return application
    # Without a token a page of the web could reach the server under a name of its own.
    return TrustedHostMiddleware(
        application, allowed_hosts=[*LOCAL, settings.host], www_redirect=False
    )


def _set_threads(settings: Settings) -> None:
    import torch

    n = settings.threads
    if n is None and settings.replicas > 1:
        n = max(1, len(os.sched_getaffinity(0)) // settings.replicas)
    if n is not None:
        torch.set_num_threads(n)


def application() -> Any:
    """Return the application in a further process; the replica that leads tells that it serves."""
    settings = Settings.of(os.environ[SETTINGS])
    Thread(target=_end_with_the_parent, name="sonde-parent", daemon=True).start()

    def told() -> None:
        if service_of(ready_app).monitor.leads:
            say_serving(settings)

    ready_app = made(settings, when_ready=told)
    return ready_app


def _end_with_the_parent() -> None:
    """Stop this replica as a signal does when its parent process has ended.

    Replicas share the socket of their parent: those of a killed server would go on answering, and
    the port would stay taken.
    """
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def service_of(application: Any) -> Service:
    """Return the service behind an application that ``made`` has made."""
    return getattr(application, "app", application).state.service


async def _say_when_started(server: Any, settings: Settings) -> None:
    while not server.started:  # a small model is loaded before the port is open
        await asyncio.sleep(LOOK_SECONDS)
    port = server.servers[0].sockets[0].getsockname()[1]
    say_serving(replace(settings, port=port))


def say_serving(settings: Settings) -> None:
    """Print where the model is served, unless the settings are quiet."""
    if not settings.quiet:
        address = f"http://{settings.host}:{settings.port}"
        sys.stderr.write(f"note: serving {settings.model} at {address} (Ctrl-C ends)\n")
        sys.stderr.flush()


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; then answer waiting requests and commit the traffic.

    ``check`` the settings first.

    Returns
    -------
    int
        The exit code: 2 if the server could not start, or its model could not be loaded.
    """
    import uvicorn

    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "access_log": False,
        "server_header": False,
        "log_level": "warning",
        "timeout_keep_alive": KEEP_SECONDS,
        "timeout_graceful_shutdown": int(settings.limits.drain_seconds) + 1,
        "lifespan": "on",
        "http": partial(limited_protocol, settings.limits),
    }
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains at a signal, and then gives it to the handler that was there before.
        signal.signal(number, lambda *_: None)
    if settings.replicas == 1:
        failed = Event()

        def end() -> None:  # it would never be ready
            failed.set()
            server.should_exit = True

        saying = list[asyncio.Task[None]]()

        def ready() -> None:
            saying.append(asyncio.create_task(_say_when_started(server, settings)))

        server = uvicorn.Server(uvicorn.Config(made(settings, end, ready), **options))
        server.run()
        return 0 if server.started and not failed.is_set() else 2
    if settings.port == 0:
        with socket.create_server((settings.host, 0)) as free:
            settings = replace(settings, port=free.getsockname()[1])
            options["port"] = settings.port
    with sharing(settings) as shared:
        os.environ[SETTINGS] = shared.text()
        uvicorn.run(
            "sonde.serving.running:application", factory=True, workers=settings.replicas, **options
        )
    return 0
