"""The state behind the endpoints: the model, the queue, and the traffic records."""

import asyncio
import atexit
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from sonde.core.errors import InputError, SondeError
from sonde.data.sources import Row
from sonde.serving.batcher import Batcher
from sonde.serving.bodies import Rows
from sonde.serving.callers import callers_of
from sonde.serving.changes import Changes
from sonde.serving.figures import Figures
from sonde.serving.limits import Limits
from sonde.serving.monitor import Monitor
from sonde.serving.peers import SECONDS
from sonde.serving.preparing import Preparing
from sonde.serving.recent_traffic import RecentTraffic, state_of
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer, Answered, Item, ServedModel
from sonde.serving.traffic import Schedule, own_keys

_log = logging.getLogger("sonde")
SMALL = 4096
"""Bytes of a request that is prepared in the thread that reads requests."""
LOADING_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""How often the file of a calibration is looked at."""


class Service:
    """A served model with its queue and records; the parameters are those of ``app``.

    Attributes
    ----------
    failure : str or None
        Why the model could not be loaded.
    when_failed, when_ready : function or None
        Called if the model could not be loaded, and when it can answer.
    monitor : Monitor
        What is kept of the traffic.
    """

    def __init__(
        self,
        model: Any,
        fitted: Any,
        *,
        alpha: float,
        limits: Limits,
        log: str | Path | None,
        schedule: Schedule,
        keep_inputs: int,
        registry: Any,
        calibrate: str | Path | None,
        shared: str | Path | None,
        stall_seconds: float,
        batch_invariant: bool,
        client_field: str | None,
        options: dict[str, Any],
    ) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"serve: expected a false-alarm rate in (0, 1), got {alpha}.")
        self._source, self._options = (model, fitted), options
        self._batch_invariant, self.client_field = batch_invariant, client_field
        self.alpha, self.limits, self.keep_inputs = alpha, limits, keep_inputs
        self.schedule, self.stall_seconds = schedule, stall_seconds
        self.calibrate = None if calibrate is None else Path(calibrate)
        self.figures, self.recent = Figures(registry), RecentTraffic(keep_inputs)
        self.monitor = Monitor(log, shared, schedule, self.figures, self.recent)
        self.failure: str | None = None
        self.when_failed: Callable[[], None] | None = None
        self.when_ready: Callable[[], None] | None = None
        self._served: ServedModel | None = None
        self._batcher: Batcher | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._readers = ThreadPoolExecutor(2, "sonde-inputs")
        self._watcher = ThreadPoolExecutor(1, "sonde-watch")
        self._preparing = Preparing(lambda *each: self._prepared_each(self.served_now(), *each))
        self._stopping, self._n_preparing = False, 0
        self._rows: Rows | None = None
        self.figures.measure("waiting_inputs", lambda: self.n_waiting)
        self.figures.measure("ready", lambda: self.is_ready)
        self.figures.measure("stalled_seconds", lambda: self.stalled_for)
        self.figures.measure("last_commit_timestamp_seconds", lambda: self.monitor.last_commit)

    @property
    def is_ready(self) -> bool:
        """True if the model can answer."""
        return self._served is not None and not self._stopping and not self.is_stalled

    @property
    def stalled_for(self) -> float:
        """Seconds since the forward pass began that runs now; 0 if none runs."""
        return 0.0 if self._batcher is None else self._batcher.seconds_running

    @property
    def is_stalled(self) -> bool:
        """True if a forward pass takes longer than it may."""
        return self.stalled_for > self.stall_seconds

    @property
    def n_waiting(self) -> int:
        """Number of inputs that wait for a forward pass, or are being prepared for it."""
        return self._n_preparing + (0 if self._batcher is None else self._batcher.n_waiting)

    @property
    def changes(self) -> Changes | None:
        """The change detectors; None without a probe."""
        return self.monitor.changes

    def start(self) -> None:
        """Load the model and start to answer, once, in the running event loop."""
        if self._batcher is not None:
            return
        self._batcher = Batcher(self._run, self.limits, self._seen, lambda: self.served_now().most)
        self._batcher.start()
        self._tasks.append(asyncio.create_task(self._load()))

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._served = await loop.run_in_executor(self._watcher, self._loaded)
        except Exception as error:  # whatever it is: the server would wait forever, and say nothing
            is_expected = isinstance(error, SondeError | OSError)
            self.failure = str(error) if is_expected else f"{type(error).__name__}: {error}"
            _log.error("%s", self.failure, exc_info=None if is_expected else error)
            if self.when_failed is not None:
                self.when_failed()
            return
        if self.when_ready is not None:
            self.when_ready()
        atexit.register(self.monitor.close)
        seconds = self.schedule.commit_seconds
        self._tasks.append(asyncio.create_task(self._repeat(seconds, self.monitor.commit)))
        if self.monitor.peers is not None:
            self._tasks.append(asyncio.create_task(self._repeat(SECONDS, self.monitor.share)))
        if self.calibrate is not None:
            self._tasks.append(asyncio.create_task(self._recalibrate(self.calibrate)))

    async def loaded(self) -> None:
        """Wait until the model is loaded, or could not be."""
        self.start()
        while self._served is None and self.failure is None:
            await asyncio.sleep(LOADING_SECONDS)

    def _loaded(self) -> ServedModel:
        model, fitted = self._source
        if not isinstance(model, nn.Module) and callable(model):
            model = model()
        options = dict(self._options)
        largest = self.limits.batch
        served = ServedModel(
            model,
            fitted,
            alpha=self.alpha,
            largest=largest,
            options=options,
            batch_invariant=self._batch_invariant,
        )
        self.monitor.open(served)
        return served

    async def _repeat(self, seconds: float, action: Callable[[], None]) -> None:
        """Run a function in the watch thread again and again; a failure is logged once in a row."""
        loop, has_failed = asyncio.get_running_loop(), False
        while True:
            await asyncio.sleep(seconds)
            try:
                await loop.run_in_executor(self._watcher, action)
            except Exception as error:
                if not has_failed:
                    _log.error(
                        "the watch of the traffic failed: %s: %s", type(error).__name__, error
                    )
                has_failed = True
            else:
                has_failed = False

    async def _recalibrate(self, path: Path) -> None:
        """Load the calibration of a file now and again whenever the file changes."""
        stamp: Any = None
        while True:
            with suppress(OSError):
                now = path.stat()
                if (now.st_mtime_ns, now.st_size, now.st_ino) != stamp:
                    stamp = (now.st_mtime_ns, now.st_size, now.st_ino)
                    await self._take(path)
            await asyncio.sleep(LOOK_SECONDS)

    async def _take(self, path: Path) -> None:
        batcher, served = self._batcher, self.served_now()
        assert batcher is not None  # started before the model is loaded
        try:
            await batcher.call(lambda: served.calibrated(path))
        except (SondeError, OSError) as error:
            _log.error(
                "the calibration %s was rejected: %s The previous calibration stays in use.",
                path,
                error,
            )
        else:
            if served.fitted is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._watcher, self.monitor.renew, served.fitted)
            _log.warning("the calibration of %s is now in use", path)

    async def stop(self) -> None:
        """Answer waiting requests, commit the traffic, and stop."""
        self._stopping = True
        if self._batcher is not None:
            await self._batcher.stop(self.limits.drain_seconds)
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._watcher, self.monitor.close)
        atexit.unregister(self.monitor.close)
        self._readers.shutdown(wait=False)
        self._watcher.shutdown(wait=True)

    def served(self) -> ServedModel:
        """Return the model.

        Raises
        ------
        Refusal
            503 while it is being loaded, when it could not be, and when the server stops.
        """
        if self._stopping:
            raise Refusal(
                503,
                "The server is stopping. Send the request again in a moment.",
                {"Retry-After": "2"},
            )
        self.start()
        if self.failure is not None:
            raise Refusal(
                503, "The model could not be loaded. See the server's log for the reason."
            )
        if self._served is None:
            raise Refusal(
                503,
                "The model is being loaded. Send the request again in a moment.",
                {"Retry-After": "1"},
            )
        return self._served

    def rows(self) -> Rows:
        """Return the conversion of inputs to rows; any form is tried until one works."""
        served = self.served()
        if not served.is_open:
            return Rows("tensor", ("x",), self.limits, named=False, dtype=served.float_type)
        if self._rows is None:
            encoder = served.inputs.encoder
            names = tuple(encoder.identity()["inputs"])
            self._rows = Rows(encoder.kind, names, self.limits, dtype=served.float_type)
        return self._rows

    async def answer(
        self, name: str, inputs: Sequence[Any], size: int | None = None, client: str = ""
    ) -> list[Answer]:
        """Return the answers to the inputs of one request.

        Parameters
        ----------
        name : str
            Id of the request.
        inputs : sequence
        size : int, optional
            Bytes of the request. A small one is prepared at once: to wake another thread takes
            longer.
        client : str, default=""
            Name of the caller; a field of the inputs may name another one.

        Raises
        ------
        Refusal
            With the status and the sentence for the client.
        """
        served, loop = self.served(), asyncio.get_running_loop()
        batcher = self._batcher
        assert batcher is not None  # started by ``served``
        names, form = [f"{name}-{i}" for i in range(len(inputs))], self.rows()
        inputs, callers = callers_of(inputs, client, self.client_field)
        is_small = size is not None and size <= SMALL
        batcher.check_room(len(inputs), self._n_preparing)
        self._n_preparing += len(inputs)
        try:
            if is_small and served.is_open and served.has_plain_inputs:
                given = form.of(inputs), own_keys(names), callers
                items = await self._preparing.items(*given)
            else:
                items = await loop.run_in_executor(
                    self._readers, self._items, served, names, inputs, callers
                )
        finally:
            self._n_preparing -= len(inputs)
        good = [item for item in items if isinstance(item, Item)]
        taken = iter(await batcher.answers(good) if good else [])
        each = [next(taken) if isinstance(item, Item) else item for item in items]
        self._note_refused(each, inputs, callers)
        answers = self._answers(each, [*map(form.ignored, inputs)])
        self._record(names, answers, inputs)
        return answers

    def _note_refused(
        self, each: Sequence[Answer | Refusal], inputs: Sequence[Any], callers: Sequence[bytes]
    ) -> None:
        """Record inputs that the client must correct: they are a part of the traffic."""
        refused = [
            (content_of(given), one.column, caller)
            for one, given, caller in zip(each, inputs, callers, strict=True)
            if isinstance(one, Refusal) and one.status in (400, 413)
        ]
        if refused and not self._stopping:
            contents, about, names = zip(*refused, strict=True)
            self._watcher.submit(self.monitor.refuse, contents, about, time.time(), names)

    def _answers(
        self, each: Sequence[Answer | Refusal], ignored: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """Return one answer for each input; raise if every input is refused."""
        refused = [one.of_input(i) for i, one in enumerate(each) if isinstance(one, Refusal)]
        if len(refused) == len(each):
            raise refused[0]
        return [
            Answer(refusal=one.of_input(i))
            if isinstance(one, Refusal)
            else (replace(one, ignored=names) if names else one)
            for i, (one, names) in enumerate(zip(each, ignored, strict=True))
        ]

    def _record(
        self, names: Sequence[str], answers: Sequence[Answer], inputs: Sequence[Any]
    ) -> None:
        """Keep the answers for feedback, metrics and the dashboard."""
        given = [i for i, one in enumerate(answers) if one.refusal is None]
        if n_refused := len(inputs) - len(given):
            self.figures.refused.inc(n_refused)
        if n_cut := sum(one.cut is not None for one in answers):
            self.figures.cut.inc(n_cut)
        self.monitor.feedback.remember([names[i] for i in given], [answers[i] for i in given])
        shown = inputs if self.keep_inputs else [None] * len(inputs)
        try:
            self.recent.answers(names, answers, shown)
        except Exception as error:  # the dashboard must not take an answer from anybody
            _log.error("the dashboard failed: %s", type(error).__name__)

    def judge(self, truths: Sequence[Mapping[str, Any]]) -> list[bool | Refusal]:
        """Record the correct answers to some inputs; return whether the model was correct on each.

        Parameters
        ----------
        truths : sequence of mapping
            Each with the ``id`` of an answer and the ``truth``. One that cannot be recorded has its
            refusal in place of the judgement.
        """
        classes = None if self._served is None else self._served.classes
        each: list[bool | Refusal] = []
        for one in truths:
            try:
                judgement = self.monitor.feedback.take(one.get("id"), one.get("truth"), classes)
            except Refusal as refusal:
                judgement = refusal if len(truths) == 1 else refusal.of_input(len(each))
            each.append(judgement)
        return each

    def _items(
        self,
        served: ServedModel,
        names: Sequence[str],
        inputs: Sequence[Any],
        callers: Sequence[bytes],
    ) -> list[Item | Refusal]:
        """Return each input ready for a batch, or refused."""
        return self._prepared_each(served, self.rows().of(inputs), own_keys(names), callers)

    def _prepared_each(
        self,
        served: ServedModel,
        rows: Sequence[Row | Refusal],
        keys: Sequence[bytes],
        callers: Sequence[bytes],
    ) -> list[Item | Refusal]:
        good = {i: row for i, row in enumerate(rows) if not isinstance(row, Refusal)}
        chosen = [keys[i] for i in good], [callers[i] for i in good]
        tried = self._prepared(served, [*good.values()], *chosen)
        items = dict[int, Item | Refusal]()
        if not isinstance(tried, Refusal):
            items |= zip(good, tried, strict=True)
        else:  # find out which input it is about
            for i, row in good.items():
                one = [row], [keys[i]], [callers[i]]
                alone = tried if len(good) == 1 else self._prepared(served, *one)
                items[i] = alone if isinstance(alone, Refusal) else alone[0]
        return [one if isinstance(one, Refusal) else items[i] for i, one in enumerate(rows)]

    def _prepared(
        self,
        served: ServedModel,
        rows: Sequence[Row],
        keys: Sequence[bytes],
        callers: Sequence[bytes],
    ) -> list[Item] | Refusal:
        """Return the rows ready for a batch, or why one of them is refused."""
        if not rows:
            return []
        try:
            return served.prepare(rows, keys, self.limits.tokens, callers)
        except Refusal as refusal:
            return refusal
        except SondeError as error:
            return Refusal(400, _without_values(error))
        except (ValueError, TypeError, RuntimeError) as error:
            return Refusal(
                400,
                f"The model does not accept inputs of this form ({type(error).__name__}). GET "
                "/openapi.json shows an example.",
            )

    def _run(self, items: Sequence[Item]) -> Answered:
        return self.served_now().answer(items)

    async def in_model_thread(self, action: Callable[[], None]) -> None:
        """Run a function in the thread of the model, between two batches."""
        assert self._batcher is not None  # started by ``served``
        await self._batcher.call(action)

    def served_now(self) -> ServedModel:
        """Return the model, also while the server is stopping."""
        assert self._served is not None  # items are made by it
        return self._served

    def _seen(self, items: Sequence[Item], answered: Answered, seconds: float) -> None:
        """Record a forward pass, in the model's thread."""
        self.figures.seen(answered, seconds, self.alpha)
        if self.monitor.log is not None or self.changes is not None:
            self._watcher.submit(self._observe, items, answered, time.time())

    def _observe(self, items: Sequence[Item], answered: Answered, at: float) -> None:
        try:
            self.monitor.observe(self.served_now(), items, answered, at)
        except Exception as error:
            _log.error("the traffic's statistics failed: %s: %s", type(error).__name__, error)

    async def acknowledge(self) -> dict[str, Any] | None:
        """End the change that lasts; return it, or None if there is none."""
        loop, where = asyncio.get_running_loop(), self._watcher
        return await loop.run_in_executor(where, self.monitor.acknowledge)

    def metrics(self) -> str:
        """Return the metrics of all replicas in the text format of Prometheus."""
        peers = self.monitor.peers
        if peers is None:
            return self.figures.text()
        others = {name: one["metrics"] for name, one in self.monitor.others().items()}
        return self.figures.text({peers.name: self.figures.snapshot(), **others})

    def state(self) -> dict[str, Any]:
        """Return everything that the dashboard shows, of all replicas."""
        others = [one["recent"] for one in self.monitor.others().values()]
        served = self._served
        return {
            **state_of([self.recent.counts(), *others]),
            "changes": self.monitor.events()[::-1],
            **self.monitor.left_out(),
            "accuracy": self.monitor.accuracy(),
            "waiting": self.n_waiting,
            "stalled": self.stalled_for if self.is_stalled else 0,
            "ready": self.is_ready,
            "failure": self.failure,
            "commits_fail": self.monitor.is_failing,
            "last_commit": self.monitor.last_commit,
            "logs": self.monitor.log is not None,
            "has_probe": served is not None and served.fitted is not None,
            "name": "loading" if served is None else served.name,
            "alpha": self.alpha,
        }

    @property
    def is_stopping(self) -> bool:
        """True if the server is stopping."""
        return self._stopping

    def counted(self, route: str, code: int, seconds: float) -> None:
        """Record a request."""
        self.recent.request(route, code, seconds)
        self.figures.request(route, code, seconds)


def _without_values(error: SondeError) -> str:
    """Return an error's sentence if it contains no input values, else a general sentence."""
    text = str(error)
    if text.startswith("input ") or text.startswith("no value in column"):
        return text[:300].rstrip(".") + "."
    return "The model cannot read these inputs. GET /openapi.json shows the form that it reads."


def content_of(given: Any) -> bytes:
    """Return a hash of an input as the client sent it; it stays in memory."""
    text = given if isinstance(given, bytes) else json.dumps(given, sort_keys=True).encode()
    return blake2b(text, digest_size=16).digest()
