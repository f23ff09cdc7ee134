"""``sonde.Guard``: fitted detectors on every forward pass of a live model in use."""

import threading
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core._shown import html_table
from sonde.core.batch import Batch
from sonde.core.errors import InputError, SiteError, SondeWarning, StateError
from sonde.core.inputs import Model
from sonde.core.sinks import KEEP, Sinks
from sonde.core.wording import plural
from sonde.data import special_ids
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.fitting.header import unreadable_sites
from sonde.run.fitting.live_model import require_live_model
from sonde.run.instruments.entries import Key
from sonde.run.reading.load import load
from sonde.run.scoring.batches import SCHEMA
from sonde.run.watching._stacked import Stacked
from sonde.run.watching._watched import (
    Alarm,
    GuardStep,
    Methods,
    WatchedDetector,
    schema_of,
    scored,
    watches_of,
)
from sonde.run.watching._weights import HeldWeights
from sonde.run.watching.metrics import Metrics
from sonde.tap import Onlooker
from sonde.tap.forwards.watched_call import WatchedText
from sonde.tap.hooks.latest import Latest


@dataclass(eq=False)
class GuardedText:
    """Scores of one text: of its first forward pass and of those that continue its cache.

    A text is the batch of a forward: one example or several. While the text grows it can be read
    at any time.

    Attributes
    ----------
    forwards : list of int
        Numbers of its forwards among all that the guard has seen, from 0.
    alarms : list of Alarm
        In order.
    """

    watches: tuple[WatchedDetector, ...] = field(repr=False)
    steps: list[GuardStep] = field(default_factory=list[GuardStep], repr=False)
    forwards: list[int] = field(default_factory=list[int])
    alarms: list[Alarm] = field(default_factory=list[Alarm])

    @property
    def scores(self) -> dict[Key, Float[Tensor, "row"]]:
        """Scores by (method, site): a row for each example, token or patch."""
        steps = list(self.steps)
        parts = [step.scores.split(list(step.counts)) for step in steps]
        return {w.name: torch.cat([p[i] for p in parts]) for i, w in self._seen(steps)}

    @property
    def example(self) -> dict[Key, Int[Tensor, "row"]]:
        """Index in the batch of each score's row."""
        steps = list(self.steps)
        return {w.name: torch.cat([s.example[i] for s in steps]) for i, w in self._seen(steps)}

    @property
    def position(self) -> dict[Key, Int[Tensor, "row"]]:
        """Position in the text or image of each score."""
        steps = list(self.steps)
        return {w.name: torch.cat([s.position[i] for s in steps]) for i, w in self._seen(steps)}

    @property
    def p_values(self) -> dict[Key, Float[Tensor, "row"]]:
        """Conformal p-values of the calibrated detectors."""
        steps, p_of = list(self.steps), dict[Key, Tensor]()
        for i, watch in self._seen(steps):
            scores = torch.cat([s.scores.split(list(s.counts))[i] for s in steps])
            labels = [label for s in steps if (label := s.label[i]) is not None]
            p = watch.p_value(scores, torch.cat(labels) if labels else None)
            if p is not None:
                p_of[watch.name] = p
        return p_of

    def table(self) -> pa.Table:
        """Return the table of ``sonde.score`` for the text: a line per row, site and detector."""
        scores, p_values = self.scores, self.p_values
        example, position = self.example, self.position
        parts = []
        for name, row_scores in scores.items():
            n, p = len(row_scores), p_values.get(name)
            columns = {
                "id": [str(i) for i in example[name].tolist()],
                "row": example[name].tolist(),
                "position": position[name].tolist(),
                "site": [name[1]] * n,
                "instrument": [name[0]] * n,
                "score": row_scores.tolist(),
                "p": [None] * n if p is None else p.tolist(),
            }
            parts.append(pa.Table.from_pydict(columns, schema=SCHEMA))
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _seen(self, steps: list[GuardStep]) -> list[tuple[int, WatchedDetector]]:
        return list(enumerate(self.watches)) if steps else []


GAUSSIAN = "mahalanobis"
MOST_LIMITS = 32


@final
class Guard:
    """Scores every forward pass of a live model inside a ``with`` block; outputs are unchanged.

    ``scores``, ``p_values`` and ``alarms`` are those of the last text: a forward that goes on from
    a filled key-value cache (each step of ``model.generate``) adds its new tokens, any other
    forward begins anew, so memory does not grow. Scores and the whitening of covariances are
    computed in float32: scores of ``mahalanobis`` and ``knn`` have a relative error below 1e-5
    against float64 (``pytest -k scores_in_float32``). Each detector at each site raises false
    alarms at the rate ``alpha``: with several of them the rates add up.

    Every forward of the model counts, whichever thread or asyncio task makes it. Asked in a thread
    or task that has called the model, the guard gives what it saw of that call; elsewhere what it
    saw last. The model keeps its mode: in training mode, with dropout, usual inputs look unusual.
    Weights and adapters that change after the guard was made, or for one call, are told once by a
    ``SondeWarning``. A detector that needs gradients turns them on for the forward and runs a
    backward after it. ``token_statistics`` and ``pawn`` score each token as it comes, if their rows
    are calibrated (``reduction="rows"``): those that ``generate`` makes, and the prompt's too with
    ``logits_to_keep=0``. With beams or assisted decoding the tokens that were rejected later are
    scored too (these two follow beams, but no assistant). A sequence that has ended while
    ``generate`` continues others of its batch is scored no more, if ``generation_config`` has the
    end token and the padding token of the call to ``generate``; without a cache the padding is
    scored. A probe that is calibrated by label is used with the threshold of all classes together:
    a running model has no labels.

    Parameters
    ----------
    model : nn.Module or Model
        The model that the probe was fitted on. In another type (bfloat16 for a probe of float32)
        its weights cannot be compared and scores shift: a ``SondeWarning`` says so.
    probe : Fitted or path
        Fitted detectors, or the path of their file.
    alpha : float or None, default=0.05
        False-alarm rate of each detector at each site; None scores without thresholds.
    on_alarm : callable, optional
        Called with each ``Alarm``, in the thread that called the model; an exception that it raises
        leaves the forward.
    methods : sequence, optional
        Detectors to use, each by its word or by a pair of word and site; all by default.
    processor : object, optional
        The tokenizer of a live module: special tokens are left out of ``mean`` and ``tokens`` as
        when the probe was fitted. Without it they count.
    generation_config : object, optional
        Settings of generation, whose ``eos_token_id`` and ``pad_token_id`` mark tokens that are not
        scored; by default those of the model.
    metrics : PrometheusMetrics, OpenTelemetryMetrics or other Metrics, optional
        Told of every forward, of rows, alarms and p-values by detector and site.
    here : bool, default=False
        Guard the forwards of the thread or task that opens the guard alone; the others pass by.

    Attributes
    ----------
    n_forwards, n_alarms : int
        Since the guard was made, by all callers.

    Raises
    ------
    StateError
        If the probe was fitted on another model or on arrays, or holds no detector.
    CalibrationError
        If the probe is not calibrated, or on too few rows for ``alpha``.

    Examples
    --------
    >>> from sonde.detect import Mahalanobis
    >>> from sonde.run.fitting.fit import fit
    >>> from sonde.run.reading.read import read
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval()
    >>> rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    >>> probe = fit(Mahalanobis(), read(net, list(rows), sites="1"), progress=False)
    >>> with Guard(net, probe, alpha=0.05) as guard:
    ...     _ = net(torch.full((1, 3), 50.0))
    >>> guard.p_values["mahalanobis", "1:out"].item() < 0.05, len(guard.alarms)
    (True, 1)
    """

    def __init__(
        self,
        model: Any,
        probe: Fitted | str | Path,
        alpha: float | None = 0.05,
        on_alarm: Callable[[Alarm], None] | None = None,
        *,
        methods: Methods | None = None,
        processor: Any = None,
        generation_config: Any = None,
        metrics: Metrics | None = None,
        here: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module | Model):
            raise InputError(
                f"Guard: expected a live module or what sonde.load returns, got {model!r}. "
                "Load it first: the guard watches the calls that you make."
            )
        if metrics is not None and not isinstance(metrics, Metrics):
            raise InputError(
                "Guard: expected metrics with the methods forward, passed_by and rows, got "
                f"{type(metrics).__name__}. Add the missing ones, as in PrometheusMetrics."
            )
        live = load(model, processor=processor)
        fitted = as_fitted(probe, "Guard")
        device = require_live_model(fitted.header, live)
        self.alpha, self.on_alarm, self._metrics = alpha, on_alarm, metrics
        self._watches = tuple(watches_of(fitted, alpha, methods, device))
        needs = {n for watch in self._watches for n in watch.needs}
        wanted = {key for watch in self._watches for key in watch.keys}
        reading = fitted.header.get("reading") or {}
        try:
            self._onlooker = Onlooker(
                live,
                [schema_of(s) for s in fitted.header["sites"] if s["text"] in wanted],
                self._see,
                objective=reading.get("objective") if "grad" in needs else None,
                perturb=reading.get("perturb") if "perturbed_logits" in needs else None,
                logits="logits" in needs or any(w.by == "predicted" for w in self._watches),
                logits_output=reading.get("logits_output"),
                special=special_ids(live.processor),
                sinks=Sinks.parse(reading.get("sinks") or KEEP),
                generation_config=generation_config,
                here=here,
                passed=None if metrics is None else metrics.passed_by,
            )
        except SiteError as error:
            raise unreadable_sites("Guard", sorted(wanted), error) from error
        gaussian = [w for w in self._watches if w.name[0] == GAUSSIAN and w.reduction is None]
        self._stacked = Stacked.of([(w.name[1], w.scorer) for w in gaussian])
        self._together = {(GAUSSIAN, key) for key in self._stacked.keys} if self._stacked else set()
        self._thresholds: dict[tuple[int, ...], Tensor] = {}
        self.n_forwards, self.n_alarms, self._lock = 0, 0, threading.Lock()
        self._weights, self._is_told = HeldWeights(live.module), False
        self._latest: Latest[GuardedText] = Latest()

    def __enter__(self) -> "Guard":
        self._onlooker.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._onlooker.__exit__(kind, error, trace)

    def last(self, *, here: bool = False) -> GuardedText:
        """Return the scores of the last text that this thread or task gave to the model.

        Parameters
        ----------
        here : bool, default=False
            Refuse if this thread or task gave none; by default the last text of any caller is
            returned then.

        Raises
        ------
        StateError
            With ``here``, if this thread or task has not called the model.
        """
        text = self._latest.own() if here else self._latest.get()
        if here and text is None:
            raise StateError(
                "Guard.last: expected this thread or task to have called the guarded model, got "
                f"{plural(self.n_forwards, 'forward pass', 'forward passes')} of other threads "
                "or tasks. Read Guard.last in the function that calls the model."
            )
        return GuardedText(self._watches) if text is None else text

    @property
    def scores(self) -> dict[Key, Float[Tensor, "row"]]:
        """Scores of the last text by (method, site): a row for each example, token or patch."""
        return self.last().scores

    @property
    def example(self) -> dict[Key, Int[Tensor, "row"]]:
        """Index in the batch of each score's row."""
        return self.last().example

    @property
    def position(self) -> dict[Key, Int[Tensor, "row"]]:
        """Position in the text or image of each score."""
        return self.last().position

    @property
    def p_values(self) -> dict[Key, Float[Tensor, "row"]]:
        """Conformal p-values of the last text, for the calibrated detectors."""
        return self.last().p_values

    @property
    def alarms(self) -> list[Alarm]:
        """Alarms of the last text, in order."""
        return list(self.last().alarms)

    def table(self) -> pa.Table:
        """Return the table that ``sonde.score`` would give for the last text."""
        return self.last().table()

    def _repr_html_(self) -> str:
        title = f"Guard: {plural(self.n_forwards, 'forward')}, {plural(self.n_alarms, 'alarm')}"
        text, rows = self.last(), []
        p_values = text.p_values
        for key, scores in text.scores.items():
            p = p_values.get(key)
            least = "" if p is None else f"{p.min().item():.3g}"
            n_alarms = sum((alarm.method, alarm.site) == key for alarm in text.alarms)
            rows.append((*key, f"{scores.max().item():.6g}", least, n_alarms))
        columns = ("method", "site", "largest score", "smallest p", "alarms in the last text")
        return html_table(title, columns, rows, len(rows))

    def _see(self, batch: Batch, text: WatchedText, goes_on: bool, cut: Collection[str]) -> None:
        """Score the rows of a forward pass, in the thread that runs it."""
        if not self._is_told and (what := self._weights.changed()):
            self._is_told = True
            warnings.warn(
                f"Guard: {what}, since the guard was made. Scores and p-values are of another "
                "model than the probe's. Fit the probe on this model, or make the guard after the "
                "change.",
                SondeWarning,
                stacklevel=2,
            )
        stacked = {} if self._stacked is None else self._stacked.scores(without_sinks(batch))
        parts = [
            scored(w, batch, cut, stacked.get(w.name[1]) if w.name in self._together else None)
            for w in self._watches
        ]
        counts = tuple(len(p.scores) for p in parts)
        place = parts[0].scores.device
        scores = torch.cat([p.scores.to(place) for p in parts]).double().cpu()
        scores = scores.nan_to_num_(torch.inf, torch.inf, -torch.inf)
        columns = [tuple(getattr(p, n) for p in parts) for n in ("example", "position", "label")]
        step = GuardStep(scores, counts, *columns)
        above = scores > self._limits(step)
        if text.seen is None or not goes_on:
            text.seen = GuardedText(self._watches)
        seen: GuardedText = text.seen
        with self._lock:
            number, self.n_forwards = self.n_forwards, self.n_forwards + 1
        seen.forwards.append(number)
        seen.steps.append(step)
        self._latest.put(seen)
        if self._metrics is not None:
            self._measure(self._metrics, step, above)
        if bool(above.any()):
            self._raise_alarms(seen, step, above)

    def _measure(self, metrics: Metrics, step: GuardStep, above: Bool[Tensor, "score"]) -> None:
        metrics.forward()
        each = zip(self._watches, step.scores.split(list(step.counts)), step.label, strict=True)
        alarms = above.split(list(step.counts))
        for (watch, scores, label), over in zip(each, alarms, strict=True):
            p = watch.p_value(scores, label)
            p_values = [] if p is None else p.tolist()
            metrics.rows(watch.name, len(scores), int(over.sum()), p_values)

    def _limits(self, step: GuardStep) -> Float[Tensor, "score"]:
        is_fixed = all(label is None for label in step.label)
        thresholds = self._thresholds.get(step.counts) if is_fixed else None
        if thresholds is not None:
            return thresholds
        each = zip(self._watches, step.counts, step.label, strict=True)
        limits = torch.cat([w.thresholds(self.alpha, n, label) for w, n, label in each])
        if is_fixed:
            if len(self._thresholds) > MOST_LIMITS:
                self._thresholds.clear()
            self._thresholds[step.counts] = limits
        return limits

    def _raise_alarms(
        self, seen: GuardedText, step: GuardStep, above: Bool[Tensor, "score"]
    ) -> None:
        counts = list(step.counts)
        each = zip(above.split(counts), self._limits(step).split(counts), strict=True)
        for which, (over, limits) in enumerate(each):
            rows = torch.nonzero(over).flatten().tolist()
            for alarm in self._alarms_of(seen, which, rows, limits) if rows else ():
                seen.alarms.append(alarm)
                with self._lock:
                    self.n_alarms += 1
                if self.on_alarm is not None:
                    self.on_alarm(alarm)

    def _alarms_of(
        self, seen: GuardedText, which: int, rows: list[int], limits: Float[Tensor, "row"]
    ) -> list[Alarm]:
        """Return the alarms of one detector in the text's last step."""
        step, watch = seen.steps[-1], self._watches[which]
        scores, label = step.scores.split(list(step.counts))[which][rows], step.label[which]
        p = watch.p_value(scores, None if label is None else label[rows])
        return [
            Alarm(
                method=watch.name[0],
                site=watch.name[1],
                step=len(seen.steps) - 1,
                example=int(step.example[which][row]),
                position=int(step.position[which][row]),
                score=score,
                threshold=float(limits[row]),
                p=None if p is None else float(p[i]),
                forward=seen.forwards[-1],
            )
            for i, (row, score) in enumerate(zip(rows, scores.tolist(), strict=True))
        ]


def without_sinks(batch: Batch) -> dict[str, Tensor]:
    """Return the rows of each site that detectors score."""
    return {
        key: x[~batch.sink[key].to(x.device)] if key in batch.sink else x
        for key, x in batch.rows.items()
    }
