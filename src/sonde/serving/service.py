"""The state behind the endpoints: the model, the queue, and the traffic records."""

import asyncio
import atexit
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sonde.core.errors import InputError, SondeError, reason_of
from sonde.data.sources import Row
from sonde.files.durable import atomic_write
from sonde.run.fitting.fitted import Fitted
from sonde.serving.batcher import Batcher
from sonde.serving.bodies import Rows
from sonde.serving.changes import Changes, Event, Seen
from sonde.serving.feedback import Feedback
from sonde.serving.figures import Figures
from sonde.serving.limits import Limits
from sonde.serving.recent_traffic import RecentTraffic
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer, Answered, Item, ServedModel
from sonde.serving.traffic import Schedule, Traffic, own_keys

_log = logging.getLogger("sonde")
SMALL = 4096
"""Bytes of a request that is prepared in the thread that reads requests."""
KEPT = "changes.json"
"""File beside the traffic with its changes and the counts of feedback."""
LOOK_SECONDS = 1.0
"""How often the file of a calibration is looked at."""


class Service:
    """A served model with its queue and records; the parameters are those of ``app``.

    Attributes
    ----------
    failure : str or None
        Why the model could not be loaded.
    when_failed : function or None
        Called if the model could not be loaded.
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
        options: dict[str, Any],
    ) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"serve: expected a false-alarm rate in (0, 1), got {alpha}.")
        self._source, self._options = (model, fitted), options
        self.alpha, self.limits, self.keep_inputs = alpha, limits, keep_inputs
        self.log, self.schedule = log, schedule
        self.calibrate = None if calibrate is None else Path(calibrate)
        self.figures, self.feedback = Figures(registry), Feedback()
        self.recent = RecentTraffic(keep_inputs)
        self.changes: Changes | None = None
        self.traffic: Traffic | None = None
        self.failure: str | None = None
        self.when_failed: Callable[[], None] | None = None
        self._served: ServedModel | None = None
        self._batcher: Batcher | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._readers = ThreadPoolExecutor(2, "sonde-inputs")
        self._watcher = ThreadPoolExecutor(1, "sonde-watch")
        self._stopping = False

    @property
    def is_ready(self) -> bool:
        """True if the model can answer."""
        return self._served is not None and not self._stopping

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
            known = isinstance(error, SondeError | OSError)
            self.failure = str(error) if known else f"{type(error).__name__}: {error}"
            _log.error("%s", self.failure, exc_info=None if known else error)
            if self.when_failed is not None:
                self.when_failed()
            return
        if self.log is not None:
            atexit.register(self._close_traffic)
            self._tasks.append(asyncio.create_task(self._commit()))
        if self.calibrate is not None:
            self._tasks.append(asyncio.create_task(self._recalibrate(self.calibrate)))

    def _loaded(self) -> ServedModel:
        model, fitted = self._source
        if not isinstance(model, nn.Module) and callable(model):
            model = model()
        options = dict(self._options)
        largest = self.limits.batch
        served = ServedModel(model, fitted, alpha=self.alpha, largest=largest, options=options)
        if served.fitted is not None:
            self.changes = Changes(served.fitted)
        if self.log is not None and served.is_open:
            self.traffic = Traffic(self.log, served.stream, self.schedule)
            self._restore(self.traffic)
        return served

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.schedule.commit_seconds)
            if self.traffic is not None:
                await loop.run_in_executor(self._watcher, self.traffic.commit)
                await loop.run_in_executor(self._watcher, self._keep)

    async def _recalibrate(self, path: Path) -> None:
        """Load the calibration of a file now and again whenever the file changes."""
        known: Any = None
        while True:
            with suppress(OSError):
                now = path.stat()
                if (now.st_mtime_ns, now.st_size, now.st_ino) != known:
                    known = (now.st_mtime_ns, now.st_size, now.st_ino)
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
            if self.changes is not None and served.fitted is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._watcher, self._renew_changes, served.fitted)
            _log.warning("the calibration of %s is now in use", path)

    def _renew_changes(self, fitted: Fitted) -> None:
        """Compare the traffic with another calibration; known events are kept."""
        if self.changes is not None:
            known, self.changes = self.changes.state(), Changes(fitted)
            self.changes.restore(known)

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
        await loop.run_in_executor(self._watcher, self._close_traffic)
        self._readers.shutdown(wait=False)
        self._watcher.shutdown(wait=True)

    def _close_traffic(self) -> None:
        self._keep()
        traffic, self.traffic = self.traffic, None
        if traffic is not None:
            traffic.close()
        atexit.unregister(self._close_traffic)

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
        encoder = served.inputs.encoder
        kind = encoder.kind
        names = tuple(encoder.identity()["inputs"])
        return Rows(kind, names, self.limits, dtype=served.float_type)

    async def answer(
        self, name: str, inputs: Sequence[Any], size: int | None = None
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

        Raises
        ------
        Refusal
            With the status and the sentence for the client.
        """
        served, loop = self.served(), asyncio.get_running_loop()
        batcher = self._batcher
        assert batcher is not None  # started by ``served``
        names = [f"{name}-{i}" for i in range(len(inputs))]
        is_small = size is not None and size <= SMALL
        if is_small and served.is_open and served.has_plain_inputs:
            items = self._items(served, names, inputs)
        else:
            items = await loop.run_in_executor(self._readers, self._items, served, names, inputs)
        answers = await self._answers(batcher, items)
        self._record(names, answers, inputs)
        return answers

    async def _answers(
        self, batcher: Batcher, items: Sequence[tuple[Item | Refusal, tuple[str, ...]]]
    ) -> list[Answer]:
        """Return one answer for each input; raise if every input is refused."""
        good = [item for item, _ in items if isinstance(item, Item)]
        found = iter(await batcher.answers(good) if good else [])
        each = [next(found) if isinstance(item, Item) else item for item, _ in items]
        refused = [one.of_input(i) for i, one in enumerate(each) if isinstance(one, Refusal)]
        if len(refused) == len(each):
            raise refused[0]
        return [
            Answer(refusal=one.of_input(i))
            if isinstance(one, Refusal)
            else replace(one, ignored=ignored)
            for i, (one, (_, ignored)) in enumerate(zip(each, items, strict=True))
        ]

    def _record(
        self, names: Sequence[str], answers: Sequence[Answer], inputs: Sequence[Any]
    ) -> None:
        """Keep the answers for feedback, metrics and the dashboard."""
        given = [i for i, one in enumerate(answers) if one.refusal is None]
        names, answers = [names[i] for i in given], [answers[i] for i in given]
        self.figures.refused.inc(len(inputs) - len(given))
        self.figures.cut.inc(sum(one.cut is not None for one in answers))
        self.feedback.remember(names, answers)
        shown = [inputs[i] if self.keep_inputs else None for i in given]
        try:
            self.recent.answers(names, answers, shown)
        except Exception as error:  # the dashboard must not take an answer from anybody
            _log.error("the dashboard failed: %s", type(error).__name__)

    def judge(self, name: Any, truth: Any) -> bool:
        """Record the correct answer to an input; return whether the model was correct."""
        classes = None if self._served is None else self._served.classes
        return self.feedback.take(name, truth, classes)

    def _items(
        self, served: ServedModel, names: Sequence[str], inputs: Sequence[Any]
    ) -> list[tuple[Item | Refusal, tuple[str, ...]]]:
        """Return each input ready for a batch or refused, with its names that are not read."""
        form = self.rows()
        rows, keys = form.of(inputs), own_keys(names)
        good = {i: row for i, row in enumerate(rows) if not isinstance(row, Refusal)}
        tried = self._prepared(served, [*good.values()], [keys[i] for i in good])
        items = dict[int, Item | Refusal]()
        if not isinstance(tried, Refusal):
            items |= zip(good, tried, strict=True)
        else:  # find out which input it is about
            for i, row in good.items():
                alone = tried if len(good) == 1 else self._prepared(served, [row], [keys[i]])
                items[i] = alone if isinstance(alone, Refusal) else alone[0]
        each = [one if isinstance(one, Refusal) else items[i] for i, one in enumerate(rows)]
        return [(one, form.ignored(given)) for one, given in zip(each, inputs, strict=True)]

    def _prepared(
        self, served: ServedModel, rows: Sequence[Row], keys: Sequence[bytes]
    ) -> list[Item] | Refusal:
        """Return the rows ready for a batch, or why one of them is refused."""
        if not rows:
            return []
        try:
            return served.prepare(rows, keys, self.limits.tokens)
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

    def served_now(self) -> ServedModel:
        """Return the model, also while the server is stopping."""
        assert self._served is not None  # items are made by it
        return self._served

    def _seen(self, items: Sequence[Item], answered: Answered, seconds: float) -> None:
        """Record a forward pass, in the model's thread."""
        waiting = 0 if self._batcher is None else self._batcher.n_waiting
        self.figures.seen(answered, seconds, self.alpha, waiting)
        if self.log is not None or self.changes is not None:
            self._watcher.submit(self._observe, items, answered, time.time())

    def _observe(self, items: Sequence[Item], answered: Answered, at: float) -> None:
        served = self.served_now()
        try:
            if self.traffic is None and not self._stopping and self.log is not None:
                self.traffic = Traffic(self.log, served.stream, self.schedule)
                self._restore(self.traffic)
            self._watch_changes(items, answered, at)
            if self.traffic is not None:
                self.traffic.add(answered.batch)
        except Exception as error:
            _log.error("the traffic's statistics failed: %s: %s", type(error).__name__, error)

    def _watch_changes(self, items: Sequence[Item], answered: Answered, at: float) -> None:
        if self.changes is None:
            return
        each = [
            (one.verdict, Seen(item.content, item.numbers, one.answer, one.probability))
            for item, one in zip(items, answered.answers, strict=True)
            if one.verdict is not None
        ]
        opened = self.changes.update([v for v, _ in each], at, [seen for _, seen in each])
        for alarm in opened:
            self.figures.changes.labels(alarm.site).inc()
            _log.warning(
                "the distribution of the traffic changed: %s at %s, from input %d on; "
                "detected at input %d. POST /changes/ack takes it as the new normal.",
                alarm.detector,
                alarm.site,
                alarm.began,
                alarm.told,
            )
        self._show_change()

    def _show_change(self) -> None:
        """Set the gauges of changes and repetitions."""
        if self.changes is not None:
            self.figures.changed.set(self.changes.current is not None)
            self.figures.repeated.set(self.changes.repetitions.n_repeated)

    async def acknowledge(self) -> Event | None:
        """End the change that lasts; return it, or None if there is none."""
        if self.changes is None:
            return None
        changes, loop = self.changes, asyncio.get_running_loop()
        ended = await loop.run_in_executor(self._watcher, changes.acknowledge, time.time())
        self._show_change()
        return ended

    def _keep(self) -> None:
        """Write changes and feedback beside the traffic, so that a restart goes on with them."""
        if self.traffic is None:
            return
        changes = None if self.changes is None else self.changes.state()
        found = {"changes": changes, "feedback": self.feedback.counts()}
        path = self.traffic.folder / KEPT
        if changes is None and not any(n for _, n in found["feedback"]):
            return
        try:
            atomic_write(path, json.dumps(found).encode(), durable=False)
        except SondeError as error:
            _log.error("the changes of the traffic could not be written: %s", error)

    def _restore(self, traffic: Traffic) -> None:
        """Continue with the changes and feedback of an earlier process."""
        path = traffic.folder / KEPT
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            if self.changes is not None and found["changes"] is not None:
                self.changes.restore(found["changes"])
            self.feedback.restore(found["feedback"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read: %s. Changes start anew.", path, reason_of(error))

    def state(self) -> dict[str, Any]:
        """Return everything that the dashboard shows."""
        waiting = 0 if self._batcher is None else self._batcher.n_waiting
        changes = [] if self.changes is None else self.changes.state()["events"]
        found = self.recent.state(changes, self.feedback.figures(), waiting)
        name = "loading" if self._served is None else self._served.name
        return {**found, "name": name, "alpha": self.alpha}

    @property
    def is_stopping(self) -> bool:
        """True if the server is stopping."""
        return self._stopping

    def counted(self, route: str, code: int, seconds: float) -> None:
        """Record a request."""
        self.recent.request(route, code, seconds)
        self.figures.requests.labels(route, str(code)).inc()
        self.figures.seconds.labels(route).observe(seconds)


def _without_values(error: SondeError) -> str:
    """Return an error's sentence if it contains no input values, else a general sentence."""
    text = str(error)
    if text.startswith("input ") or text.startswith("no value in column"):
        return text[:300].rstrip(".") + "."
    return "The model cannot read these inputs. GET /openapi.json shows the form that it reads."
