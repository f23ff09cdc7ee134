"""What a whole scan costs beside the plain forward of the same rows: text, pictures, a table.

Both run in one process and in process time, one after the other, so that other work on the machine
disturbs the ratio little. Weights are random; three directions of every matrix are strengthened and
labels are partly wrong, so that the scan tries all its changes, as it does on a model with a fault.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.mobile_net import look_trained, mobile_net
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.inputs import Model
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings
from sonde.run.reading.read import read
from sonde.tap import LiveStream

SECONDS, OF_TEXTS, OF_PICTURES, OF_TABLE = 8.0, 1.3, 4.0, 3.0


def scan_cost_rows(size: Size) -> Iterable[Row]:
    """Yield the seconds of scans over their budget."""
    n = size.pick(99, 24)
    for side in size.pick((64, 224), (32,)):
        x, label = photographs(side, n)
        yield _row(f"convolutional net, {side} px", *_pictures(x, label), OF_PICTURES, SECONDS)
    n, layers = size.pick((300, 6), (24, 1))
    yield _row("text classifier", *_texts(n, layers), OF_TEXTS, SECONDS)
    yield _row("table", *_table(size.pick(1000, 60)), 0.0, OF_TABLE)


def photographs(side: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces of scikit-learn's two photographs in -1..1, and which they come from."""
    import sklearn.datasets
    from PIL import Image

    root, draw = Path(sklearn.datasets.__file__).parent / "images", np.random.default_rng(0)
    pieces, label = [], draw.integers(0, 2, n)
    images = [np.asarray(Image.open(root / f), np.float32) for f in ("china.jpg", "flower.jpg")]
    for k in label:
        top, left = (draw.integers(0, size - side + 1) for size in images[k].shape[:2])
        piece = images[k][top : top + side, left : left + side]
        pieces.append((piece / 127.5 - 1).transpose(2, 0, 1))
    return np.stack(pieces), label


def _pictures(x: np.ndarray, label: np.ndarray) -> tuple[Model, Any]:
    return Model(mobile_net(2), name="mobile"), (x, label)


def _texts(n: int, layers: int) -> tuple[Model, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    config.num_labels = 5
    net, draw = look_trained(BertForSequenceClassification(config)), np.random.default_rng(0)
    texts = [
        {"input_ids": draw.integers(999, 20_000, draw.integers(10, 42)).tolist(), "label": int(k)}
        for k in draw.integers(0, 5, n)
    ]
    return Model(net, config=config, name="text", task="classifier"), texts


def _table(n: int) -> tuple[Model, Any]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(n, 12)).astype(np.float32)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    net = look_trained(net.append(nn.Linear(32, 3)))
    return Model(net, name="table"), (x, (x[:, :3].sum(1) > 0) + (x[:, 3] > 0.5).astype(int))


def _row(what: str, model: Model, data: Any, times: float, seconds: float) -> Row:
    stream, forwards = read(model, data, further=("tokens", "patches")), list[int]()
    assert isinstance(stream, LiveStream)
    stream = replace(stream, entry=True, check=False)
    batches = list(stream.inputs.batches(0, len(stream.inputs)))
    n = sum(len(batch) for batch in batches)

    def plain() -> float:
        began = time.process_time()
        with torch.no_grad():
            for batch in batches:
                model.module(*batch.args, **batch.kwargs)
        return time.process_time() - began

    plain()
    before = plain()
    hook = model.module.register_forward_hook(lambda m, a, k, out: forwards.append(_rows(a, k)),
                                              with_kwargs=True)  # fmt: skip
    began = time.process_time()
    scanned = scan_stream(stream, what, settings=ScanSettings(progress=False))
    taken = time.process_time() - began
    hook.remove()
    forward = (before + plain()) / 2
    left = scanned.evidence.budget.text() or "nothing left untried"
    return Row(
        "scan-cost",
        f"scan, {what}, {n} rows: seconds over {times:g} x the plain forward + {seconds:g} s",
        taken / (times * forward + seconds),
        budget=1.0,
        note=(
            f"{taken:.1f} s, plain forward {forward:.2f} s ({taken / forward:.1f} x); "
            f"{sum(forwards):,} rows in {len(forwards):,} forwards; {left}"
        ),
    )


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    return len(values[0])
