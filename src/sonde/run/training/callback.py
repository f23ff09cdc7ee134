"""Record measures of hidden states while a model trains with the Trainer of transformers.

For a training loop of your own take ``Recorder``, which the callback is made of.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Instrument
from sonde.core.site import Reducer, Site
from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.training.track import Track
from sonde.tap import LiveStream
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.seeding import gpus_of

EVERY = 200
AT_ONCE = 16
"""Most examples of a forward where nothing else is asked: memory is short while a model trains, and
on a processor their states stay in its cache."""


class Recorder:
    """Fits instruments on a probe set of a model in training, and writes the states step by step.

    Recording leaves the model bit for bit as it was: its mode, gradients and hooks; and also the
    random state of torch. The model is read in eval mode.

    Parameters
    ----------
    instruments : Instrument or iterable of Instrument
        What is fitted at every site.
    probe : str, path or iterable
        The data that are read each time, as in ``sonde.read``. Keep them out of the training data.
    directory : path
        Where the steps are written: a ``Track``.
    sites, reducer
        As in ``sonde.read``.
    processor : object, optional
        Tokenizer or image processor, if items are texts or images.
    calibrate : float, default=0.0
        As in ``sonde.fit``.
    **options
        Further options of ``sonde.read``, e.g. ``limit=256``. ``batch_size`` is at most 16 unless
        it is given.
    """

    def __init__(
        self,
        instruments: Instrument | Iterable[Instrument],
        probe: Any,
        directory: Path | str,
        *,
        sites: str | Site | Sequence[str | Site] = "auto",
        reducer: str | Reducer = "auto",
        processor: Any = None,
        calibrate: float = 0.0,
        **options: Any,
    ) -> None:
        one = isinstance(instruments, Instrument)
        self.instruments = [instruments] if one else list(instruments)
        self.probe, self.calibrate = probe, calibrate
        own = tuple(type(i) for i in self.instruments if not _is_ours(i))
        self.track = Track(Path(directory), own)
        needs = {n for i in self.instruments for r in i.all_reads().values()
                 for n in r.statistic.needs()}  # fmt: skip
        self._options = {"sites": sites, "reducer": reducer, "processor": processor, **options}
        self._options.setdefault("logits", bool(needs & {"logits", "head"}))
        self._opened: tuple[nn.Module, Stream] | None = None
        self._log: Log | None = None
        self._kinds: dict[str, str] = {}

    def log_to(self, target: Any) -> None:
        """Also send every scalar metric to a logger, as ``sonde/METHOD/SITE``.

        Parameters
        ----------
        target : object
            A ``Trainer`` of transformers or Lightning, a logger of Lightning, a run of W&B, the
            module ``mlflow``, a ``SummaryWriter``, or a function of figures and step.
        """
        self._log = log_of(target)

    def record(self, model: nn.Module, step: int) -> None:
        """Fit on the probe set now and write the states under ``step``."""
        with _as_it_was(model):
            stream = self._stream(model)
            self._check_kinds(model, stream)
            fitted = fit(self.instruments, stream, calibrate=self.calibrate, progress=False)
        self.track.add(step, fitted)
        if self._log is not None:
            self._log(figures_of(fitted), step)

    def _stream(self, model: nn.Module) -> Stream:
        if self._opened is None or self._opened[0] is not model:
            # two more forwards at each step of a training are not worth what they would say
            stream = read(model, self.probe, **{"check": False, **self._options})
            given = self._options.get("batch_size", "auto") != "auto"
            self._opened = model, stream if given else _in_small_batches(stream)
        return self._opened[1]

    def _check_kinds(self, model: nn.Module, stream: Stream) -> None:
        """Raise if a module's class at a site differs from its class at earlier steps."""
        modules = ModuleNames(model).modules
        kinds = {s.site.path: type(modules[s.site.path]).__name__
                 for s in stream.schema if s.site.path in modules}  # fmt: skip
        for path, kind in kinds.items():
            if self._kinds.setdefault(path, kind) != kind:
                raise StateError(
                    f"Recorder.record: expected a {self._kinds[path]} at {path}, as in the steps "
                    f"before, got a {kind}. Record into another folder with a new Recorder."
                )

    def offer(self, processor: Any) -> None:
        """Use this tokenizer or image processor if the recorder has none."""
        if self._options["processor"] is None:
            self._options["processor"] = processor


class TrackCallback(TrainerCallback):
    """Record instruments on a probe set every ``every`` steps of a ``Trainer``.

    Parameters
    ----------
    instruments : Instrument | Iterable[Instrument]
        Instruments that are fitted at every recorded step.
    probe : object
        Inputs that are read at every recorded step; they stay the same during training.
    directory : Path | str
        Folder of the record.
    every : int, default=200
        Steps between two records; the first is made before the training begins, the last after it.
    **options
        Further options of ``Recorder``.

    Notes
    -----
    Where several processes train, the first one records. A model whose weights are sharded over
    them is refused.
    """

    def __init__(
        self,
        instruments: Instrument | Iterable[Instrument],
        probe: Any,
        directory: Path | str,
        *,
        every: int = EVERY,
        **options: Any,
    ) -> None:
        if every < 1:
            raise InputError(f"TrackCallback: expected every of at least 1 step, got {every}.")
        self.every = every
        self.recorder = Recorder(instruments, probe, directory, **options)
        self._last = -1

    @property
    def track(self) -> Track:
        """The track recorded until now."""
        return self.recorder.track

    def log_to(self, target: Any) -> None:
        """Also send metrics to a logger, usually the ``Trainer``; see ``Recorder.log_to``."""
        self.recorder.log_to(target)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the model before the first step, or at the step from which training resumes."""
        self._last = -1
        self.recorder.offer(kwargs.get("processing_class"))
        self._record(state, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the model if the step is due."""
        if state.global_step % self.every == 0:
            self._record(state, kwargs["model"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the model of the last step, before the best model is loaded in its place."""
        if "train_runtime" in (kwargs.get("logs") or {}):
            self._record(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the final model, unless it is already recorded."""
        self._record(state, kwargs["model"])

    def _record(self, state: TrainerState, model: nn.Module) -> None:
        if state.is_world_process_zero and state.global_step != self._last:
            self.recorder.record(model, state.global_step)
            self._last = state.global_step


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode during a block, then restore its mode and torch's random state."""
    training = [m for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False
        with torch.random.fork_rng(devices=gpus_of(model)):
            yield
    finally:
        for module in training:
            module.training = True


def _in_small_batches(stream: Stream) -> Stream:
    if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
        return stream
    size = min(AT_ONCE, stream.inputs.batch_size)
    return replace(stream, inputs=replace(stream.inputs, batch_size=size))


def _is_ours(instrument: Instrument) -> bool:
    return type(instrument).__module__.startswith("sonde.")


Log = Callable[[dict[str, float], int], object]


def figures_of(fitted: Fitted) -> dict[str, float]:
    """Return every finite scalar result by ``sonde/METHOD/SITE``."""
    figures: dict[str, float] = {}
    for (method, site), result in fitted:
        value = result.table().to_pylist()
        if len(value) == 1 and math.isfinite(value[0]["value"]):
            figures[f"sonde/{method}/{site}"] = value[0]["value"]
    return figures


def log_of(target: Any) -> Log:
    """Return a function that sends metrics and their step to a logger.

    Parameters
    ----------
    target : object
        A ``Trainer`` of transformers (which hands them to TensorBoard, W&B or MLflow, as it is set
        up), a ``Trainer`` or logger of Lightning, a run of W&B, the module ``mlflow``, a
        ``SummaryWriter`` of TensorBoard, or a function of the figures and the step.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if hasattr(target, "callback_handler") and hasattr(target, "log"):
        return lambda figures, step: target.log(dict(figures))
    if hasattr(target, "loggers"):
        return lambda figures, step: _each(target.loggers, figures, step)
    if hasattr(target, "log_metrics"):
        return lambda figures, step: target.log_metrics(figures, step=step)
    if hasattr(target, "add_scalar"):
        return lambda figures, step: _scalars(target, figures, step)
    if hasattr(target, "log") and not isinstance(target, type):
        return lambda figures, step: target.log(figures, step=step)
    if callable(target):
        return target
    raise InputError(
        "log_to: expected a Trainer, a logger of Lightning, a run of W&B, mlflow, a SummaryWriter "
        f"or a function of figures and step, got {type(target).__name__}."
    )


def _each(loggers: Any, figures: dict[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(figures, step=step)


def _scalars(writer: Any, figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        writer.add_scalar(name, value, step)
