"""Runs on two devices that are not there, as a program of its own: a line for each fault.

What is compared with stays on the CPU and runs outside ``Pretending``, where ops cost less.
"""

import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from cache_name import CACHE
from contract.test_instruments import DETECTORS, RUNNABLE
from models import llama
from pretend_devices import Pretending, moved
from sonde.core.batch import Batch
from sonde.core.inputs import Model
from sonde.core.stream import Stream
from sonde.detect import Energy, Mahalanobis
from sonde.engine.derived import DerivedStream
from sonde.findings.evidence.texts.lens import lens_evidence
from sonde.measure import Covariance, LayerCKA
from sonde.run.fitting.fit import fit
from sonde.run.passes.job import Job
from sonde.run.scoring.score import score
from sonde.run.training.callback import Recorder
from sonde.run.watching.guard import Guard
from sonde.store import KeptRows, Store, write_store
from sonde.tap import live_stream, replay
from sonde.testing import instrument_laws as laws
from tap_inputs import Texts, texts

FIRST, SECOND = "far:0", "far:1"


@dataclass(frozen=True)
class Spread(DerivedStream):
    """Rows of neighbouring sites on two devices; logits and the head on the second."""

    inner: Stream
    seed: int = 0

    def changed(self, batch: Batch) -> Batch:
        places = {key: (FIRST, SECOND)[i % 2] for i, key in enumerate(batch.rows)}
        head = batch.head
        return replace(
            batch,
            rows={key: x.to(places[key]) for key, x in batch.rows.items()},
            grad={key: x.to(places[key]) for key, x in batch.grad.items()},
            logits=None if batch.logits is None else batch.logits.to(SECOND),
            head=None if head is None else tuple(t if t is None else t.to(SECOND) for t in head),
        )


def scores() -> Iterator[tuple[str, Callable[[], None]]]:
    """Every detector, fitted in memory, on rows of other devices."""
    inputs = laws.make_inputs(dtype=torch.float32)
    for detector in DETECTORS:
        yield repr(detector), lambda d=detector: _scores_alike(d, laws.stream_of(d, inputs))


def _scores_alike(detector: Any, stream: Stream) -> None:
    fitted = fit(detector, stream, calibrate=0, progress=False)
    here = score(fitted, stream, explain=2, progress=False)
    with Pretending():
        there = score(fitted, Spread(stream, stream.seed), explain=2, progress=False)
    _close(*(torch.tensor(table["score"].to_pylist()) for table in (here, there)))


def pairs() -> Iterator[tuple[str, Callable[[], None]]]:
    """Every instrument that reads two sites at once, with these on two devices."""
    inputs = laws.make_inputs(dtype=torch.float32)
    for instrument in RUNNABLE:
        if instrument.span != "one" or "y" in laws.split_inputs(instrument, inputs)[0]:
            yield repr(instrument), lambda i=instrument: _fits_alike(i, laws.stream_of(i, inputs))


def _fits_alike(instrument: Any, stream: Stream) -> None:
    here = dict(fit(instrument, stream, calibrate=0, progress=False))
    with Pretending():
        there = dict(fit(instrument, Spread(stream, stream.seed), calibrate=0, progress=False))
    for name, result in here.items():
        _close(*(torch.as_tensor(r.value).double() for r in (result, there[name])))


def model() -> Iterator[tuple[str, Callable[[], None]]]:
    """A model whose last block and head, which is not tied, lie on a second device."""
    with Pretending(), torch.no_grad():
        plain, spread = _model(llama()), _model(_dispatched(llama()))
        streams = [
            live_stream(m, texts([14, 12, 13] * 16), "blocks", "mean") for m in (plain, spread)
        ]
        methods = [Mahalanobis(classes=False), Energy()]
        yield "rows", lambda: _rows_alike(*streams)
        yield "fit of all layers", lambda: _fits_alike_on(LayerCKA(), *streams)
        yield "generated", lambda: _generated_alike(plain, spread)
        yield "store", lambda: _stored_alike(*streams)
        yield "curves of a training", lambda: _recorded_alike(plain, spread)
        yield "devices of a worker", lambda: _asked(KeptRows(streams[1], 1))
        yield "lens", lambda: _close(*(_value(lens_evidence(s).loss) for s in streams))
        yield (
            "guard",
            lambda: _guards_alike(
                fit(methods, streams[0], calibrate=0, progress=False), plain.module, spread.module
            ),
        )


def _model(network: Any) -> Model:
    network.set_attn_implementation("eager")
    return Model(network, config=network.config, task="causal")


def _dispatched(network: Any) -> Any:
    """Return a model as ``accelerate.dispatch_model`` spreads it."""
    places = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND}
    places |= {f"model.layers.{i}": FIRST if i == 0 else SECOND for i in range(3)}
    for name, place in {**places, "lm_head": SECOND}.items():
        part = moved(network.get_submodule(name), place)
        hook = AlignDevicesHook(torch.device(place), skip_keys=CACHE)
        add_hook_to_module(part, hook)
    add_hook_to_module(network, AlignDevicesHook(torch.device(FIRST), io_same_device=True))
    return network


def _rows_alike(here: Stream, there: Stream) -> None:
    devices = set()
    for mine, theirs in zip(here, there, strict=True):
        for key, rows in mine.rows.items():
            devices.add(str(theirs.rows[key].device))
            _close(rows, theirs.rows[key])
    assert devices == {FIRST, SECOND}, devices


def _stored_alike(*streams: Stream) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = [write_store(s, Path(folder) / str(i)) for i, s in enumerate(streams)]
        for mine, theirs in zip(*map(Store, places), strict=True):
            for key, rows in mine.rows.items():
                _close(rows, theirs.rows[key])


def _recorded_alike(*models: Model) -> None:
    probe = [{"input_ids": [3 + i, 6, 7, 8]} for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for i, m in enumerate(models):
            recorder = Recorder(Covariance(), probe, Path(folder) / str(i), sites="blocks")
            recorder.record(m.module, 0)
            results.append(dict(recorder.track.at(0)))
        assert len(results[0]) == len(results[1]) == 3
        for name, result in results[0].items():
            _close(*(torch.as_tensor(r.value).double() for r in (result, results[1][name])))


def _generated_alike(*models: Model) -> None:
    prompts = Texts([[1, 5, 6, 7], [1, 8], [1, 9, 10]], batch_size=3, special=False)
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for reducer in ("tokens", "last", "cls", "mean"):
        streams = [
            live_stream(m, replay(m, prompts, **how), "blocks", reducer, logits=False)
            for m in models
        ]
        _rows_alike(*streams)


def _fits_alike_on(instrument: Any, *streams: Stream) -> None:
    _close(*(_value(dict(fit(instrument, s, progress=False))) for s in streams))


class _Nothing(Job):
    def work(self, start: int, stop: int) -> None:
        """Do nothing."""


def _asked(stream: Stream) -> None:
    found = [str(device) for device in _Nothing(stream, 1).devices()]
    assert found == [FIRST, SECOND], found


def _value(found: Any) -> Tensor:
    if isinstance(found, dict):
        (found,) = (torch.as_tensor(r.value) for r in found.values())
    return found


def _guards_alike(fitted: Any, here: nn.Module, there: nn.Module) -> None:
    ids, found = torch.tensor([[5, 6, 7, 8], [9, 8, 3, 2]]), []
    for network, place in ((here, "cpu"), (there, FIRST)):
        with Guard(network, fitted, alpha=None) as guard:
            network(input_ids=ids.to(place))
        found.append(guard.scores)
    for name, scores in found[0].items():
        _close(scores, found[1][name])


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(
        a.cpu().double(), b.cpu().double(), rtol=1e-3, atol=1e-4, equal_nan=True
    )


def _said(error: Exception) -> str:
    """Return an error on one line, with the place in sonde where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "/sonde/" in f.filename]
    at = f" at {inside[-1].filename}:{inside[-1].lineno}" if inside else ""
    return " ".join(str(error).split())[:300] + at


def main() -> None:
    """Print what fails, and at last how many cases there were of each part."""
    warnings.simplefilter("ignore")
    counts = []
    for part in (scores, pairs, model):
        counts.append(0)
        for name, attempt in part():
            counts[-1] += 1
            try:
                attempt()
            except Exception as error:
                print(f"{name}: {_said(error)}")
    print(*counts)


if __name__ == "__main__":
    main()
