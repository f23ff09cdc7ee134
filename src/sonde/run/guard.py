"""``sonde.Guard``: fitted detectors on every forward of a live model, while it is in use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, final

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import CalibrationError, InputError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.core.result import Scorer
from sonde.core.site import Reducer, Site
from sonde.core.state import map_tensors
from sonde.data import load, special_ids
from sonde.run._same_model import require_live_model
from sonde.run.entries import Key
from sonde.run.fitted import Fitted
from sonde.run.score import SCHEMA, needs_of
from sonde.stats import CalibratedScorer
from sonde.tap import Onlooker

BROUGHT = ("x", "logits", "grad", "position", "grid", "special")
Methods = Sequence[str | Key]
BIGGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class Alarm:
    """One row, or example, whose score lies above its detector's threshold or is not finite.

    Parameters
    ----------
    method, site : str
    step : int
        Which forward of this text: 0, or more where a key-value cache was gone on from.
    example, position : int
        Row of the batch, and where in it the alarm stands.
    score, threshold : float
    p : float or None
        Conformal p-value; None where the probe was not calibrated.
    """

    method: str
    site: str
    step: int
    example: int
    position: int
    score: float
    threshold: float
    p: float | None


@dataclass(frozen=True)
class _Watch:
    """One detector at one site, its tensors in float32."""

    name: Key
    scorer: Scorer
    needs: tuple[str, ...]
    threshold: float
    reduction: str | None


@dataclass(frozen=True)
class _Step:
    """The scores of one forward, detector after detector."""

    scores: Float[Tensor, "score"]
    counts: tuple[int, ...]
    example: tuple[Int[Tensor, "_row"], ...]
    position: tuple[Int[Tensor, "_row"], ...]


@final
class Guard:
    """Scores every forward of a live model inside a ``with`` block; the output stays as it is.

    ``scores``, ``p_values`` and ``alarms`` are those of the last text: a forward that goes on from
    a filled key-value cache (each step of ``model.generate``) adds its new tokens, any other one
    begins anew, so memory does not grow. Scores are made in float32. Each detector at each site
    raises false alarms at the rate ``alpha``: with several of them the rates add up.

    Only calls made by the thread that opened the guard count. The model keeps its mode: in training
    mode, with dropout, usual inputs look unusual. A detector that needs gradients turns them on for
    the forward and runs a backward after it. With beams or assisted decoding the tokens that were
    rejected later are scored too.

    Parameters
    ----------
    model : nn.Module or Model
        The model that the probe was fitted on. In another type (bfloat16 for a probe of float32)
        its weights cannot be compared and scores shift: a ``SondeWarning`` says so.
    probe : Fitted or path
    alpha : float or None, default=0.05
        False-alarm rate of each detector at each site; None scores without thresholds.
    on_alarm : callable, optional
        Called with each ``Alarm``; an exception that it raises leaves the forward.
    methods : sequence, optional
        Detectors to use, each by its word or by a pair of word and site; all by default.
    processor : object, optional
        The tokenizer of a live module: special tokens are left out of ``mean`` and ``tokens`` as
        when the probe was fitted. Without it they count.

    Attributes
    ----------
    n_forwards, n_alarms : int
        Since the guard was made.

    Raises
    ------
    StateError
        If the probe was fitted on another model or on arrays, or holds no detector.
    CalibrationError
        If the probe is not calibrated, or on too few rows for ``alpha``.

    Examples
    --------
    >>> from sonde.detect import Mahalanobis
    >>> from sonde.run.fit import fit
    >>> from sonde.run.read import read
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
    ) -> None:
        if not isinstance(model, nn.Module | Model):
            raise InputError(
                f"Guard: expected a live module or what sonde.load returns, got {model!r}. "
                "Load it first: the guard watches the calls that you make."
            )
        live = load(model, processor=processor)
        fitted = probe if isinstance(probe, Fitted) else Fitted.load(probe)
        device = require_live_model(fitted.header, live)
        self.alpha, self.on_alarm = alpha, on_alarm
        self._watches = _watches(fitted, alpha, methods, device)
        needs = {n for watch in self._watches for n in watch.needs}
        wanted = {watch.name[1] for watch in self._watches}
        reading = fitted.header.get("reading") or {}
        try:
            self._onlooker = Onlooker(
                live,
                [schema_of(s) for s in fitted.header["sites"] if s["text"] in wanted],
                self._see,
                objective=reading.get("objective") if "grad" in needs else None,
                logits="logits" in needs,
                special=special_ids(live.processor),
            )
        except SiteError as error:
            raise StateError(
                f"Guard: the probe was fitted at {', '.join(sorted(wanted)[:3])}, and not all of "
                f"these are sites of this model: {error} Guard the model that it was fitted on."
            ) from error
        self._thresholds: dict[tuple[int, ...], Tensor] = {}
        self.n_forwards, self.n_alarms = 0, 0
        self._forget()

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

    @property
    def scores(self) -> dict[Key, Float[Tensor, "row"]]:
        """Scores of the last text by (method, site): a row for each example, token or patch."""
        parts = [step.scores.split(list(step.counts)) for step in self._steps]
        return {w.name: torch.cat([p[i] for p in parts]) for i, w in self._seen()}

    @property
    def example(self) -> dict[Key, Int[Tensor, "row"]]:
        """Which row of the batch each score belongs to."""
        return {w.name: torch.cat([s.example[i] for s in self._steps]) for i, w in self._seen()}

    @property
    def position(self) -> dict[Key, Int[Tensor, "row"]]:
        """Where in its text or image each score stands."""
        return {w.name: torch.cat([s.position[i] for s in self._steps]) for i, w in self._seen()}

    @property
    def p_values(self) -> dict[Key, Float[Tensor, "row"]]:
        """Conformal p-values of the last text, of the detectors that are calibrated."""
        scorers = {w.name: w.scorer for w in self._watches}
        return {
            name: scorer.calibration.p_value(scores)
            for name, scores in self.scores.items()
            if isinstance(scorer := scorers[name], CalibratedScorer)
        }

    @property
    def alarms(self) -> list[Alarm]:
        """Alarms of the last text, in order."""
        return list(self._alarms)

    def table(self) -> pa.Table:
        """Return the last text as ``sonde.score`` would: a line for each row, site and detector."""
        scores, p_values = self.scores, self.p_values
        example, position = self.example, self.position
        parts = []
        for name, found in scores.items():
            n, p = len(found), p_values.get(name)
            columns = {
                "id": [str(i) for i in example[name].tolist()],
                "position": position[name].tolist(),
                "site": [name[1]] * n,
                "instrument": [name[0]] * n,
                "score": found.tolist(),
                "p": [None] * n if p is None else p.tolist(),
            }
            parts.append(pa.Table.from_pydict(columns, schema=SCHEMA))
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _seen(self) -> list[tuple[int, _Watch]]:
        return list(enumerate(self._watches)) if self._steps else []

    def _forget(self) -> None:
        self._steps: list[_Step] = []
        self._alarms: list[Alarm] = []

    def _see(self, batch: Batch, goes_on: bool) -> None:
        if not goes_on:
            self._forget()
        parts = [_scored(watch, batch, goes_on) for watch in self._watches]
        counts = tuple(len(p[0]) for p in parts)
        scores = torch.cat([p[0] for p in parts]).double().cpu().nan_to_num_(torch.inf, torch.inf)
        step = _Step(scores, counts, tuple(p[1] for p in parts), tuple(p[2] for p in parts))
        self._steps.append(step)
        self.n_forwards += 1
        above = scores > self._limits(counts)
        if bool(above.any()):
            self._raise_alarms(step, torch.nonzero(above).flatten().tolist())

    def _limits(self, counts: tuple[int, ...]) -> Tensor:
        if counts not in self._thresholds:
            if len(self._thresholds) > len(self._watches) + 32:
                self._thresholds.clear()
            each = torch.tensor([w.threshold for w in self._watches], dtype=torch.float64)
            self._thresholds[counts] = each.repeat_interleave(torch.tensor(counts))
        return self._thresholds[counts]

    def _raise_alarms(self, step: _Step, rows: list[int]) -> None:
        for row in rows:
            which, within = 0, row
            while within >= step.counts[which]:
                which, within = which + 1, within - step.counts[which]
            alarm = self._alarm(step, self._watches[which], which, within, float(step.scores[row]))
            self._alarms.append(alarm)
            self.n_alarms += 1
            if self.on_alarm is not None:
                self.on_alarm(alarm)

    def _alarm(self, step: _Step, watch: _Watch, which: int, row: int, score: float) -> Alarm:
        scorer = watch.scorer
        is_calibrated = isinstance(scorer, CalibratedScorer)
        return Alarm(
            method=watch.name[0],
            site=watch.name[1],
            step=len(self._steps) - 1,
            example=int(step.example[which][row]),
            position=int(step.position[which][row]),
            score=score,
            threshold=watch.threshold,
            p=float(scorer.calibration.p_value([score])) if is_calibrated else None,
        )


def schema_of(site: dict[str, Any]) -> SiteSchema:
    """Return what a bundle's header says of one kind of rows.

    Raises
    ------
    StateError
        If it does not say how outputs become rows: it was fitted on arrays, or long ago.
    """
    if "axes" not in site:
        raise StateError(
            f"Guard: the probe does not say which axes the outputs at {site['text']} have. Fit it "
            "again with this version."
        )
    place = Site.parse(site["text"].partition("|")[0])
    if site["text"].endswith("|entry"):
        place = replace(place, port="in", key=None)
    return SiteSchema(
        site["text"],
        place,
        Reducer.parse(site["reducer"]),
        int(site["dim"]),
        str(site.get("dtype", "float32")),
        axes=str(site["axes"]),
        prefix=int(site.get("prefix", 0)),
    )


def in_single(scorer: Scorer, device: torch.device) -> Any:
    """Return a scorer whose tensors are on a device, those of float64 in float32."""
    single = {torch.float64: torch.float32}
    if isinstance(scorer, CalibratedScorer):
        return replace(scorer, scorer=in_single(scorer.scorer, device))
    return map_tensors(scorer, lambda t: t.to(device=device, dtype=single.get(t.dtype, t.dtype)))


def _watches(
    fitted: Fitted, alpha: float | None, methods: Methods | None, device: torch.device
) -> list[_Watch]:
    found = []
    for name, scorer in fitted.scorers.items():
        if methods is not None and name not in methods and name[0] not in methods:
            continue
        needs = needs_of(scorer)
        strange = [n for n in needs if n not in BROUGHT]
        if strange or "&" in name[1]:
            what = f"the column {strange[0]!r}" if strange else f"the sites {name[1]} at once"
            raise InputError(
                f"Guard: {name[0]} needs {what}, which one forward does not bring. Guard with "
                "other detectors (methods=[...]), or score whole data with sonde.score."
            )
        how = scorer.reduction if isinstance(scorer, CalibratedScorer) else None
        limit = _threshold(name, scorer, alpha)
        found.append(_Watch(name, in_single(scorer, device), needs, limit, how))
    if not found:
        words = sorted({word for word, _ in fitted.names})
        raise StateError(
            f"Guard: expected a detector{'' if methods is None else f' among {list(methods)}'}, "
            f"the probe holds {', '.join(words) or 'nothing'}. Fit one, e.g. mahalanobis."
        )
    return found


def _threshold(name: Key, scorer: Scorer, alpha: float | None) -> float:
    if alpha is None:
        return BIGGEST
    if not isinstance(scorer, CalibratedScorer):
        raise CalibrationError(
            f"Guard: {name[0]} at {name[1]} is not calibrated, so there is no threshold for "
            f"alpha={alpha:g}. Calibrate the probe (sonde calibrate), or pass alpha=None.",
            1,
        )
    return min(scorer.calibration.threshold(alpha), BIGGEST)


def _scored(watch: _Watch, batch: Batch, goes_on: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, and the example and position of each."""
    key = watch.name[1]
    columns = [batch.column(c, key) for c in watch.needs]
    scores = watch.scorer.score(*columns)
    example, position = batch.example[key], batch.position[key]
    if watch.reduction is None:
        return scores, example, position
    if goes_on and watch.reduction != "max":
        raise InputError(
            f"Guard: {watch.name[0]} is calibrated for the {watch.reduction} of a whole text, got "
            "a forward that goes on from cached tokens. Calibrate rows (reduction='rows')."
        )
    found = watch.scorer.reduced(scores.double().cpu(), example, watch.reduction, *columns)
    return found.score, example[found.row], position[found.row]
