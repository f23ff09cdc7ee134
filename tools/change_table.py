"""Inputs until ``sonde serve`` tells a change of the traffic: ``python -m tools.change_table``.

A table of five columns, a net, Mahalanobis and KNN at one layer, calibrated on other rows. Every
stream has 500 in-distribution rows and then rows that are changed; told is the number of changed
rows up to the first alarm. Streams without a change show how often the promise is broken.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import sonde
from sonde.detect import KNN, Mahalanobis
from sonde.serving.changes import Changes, Seen
from sonde.serving.served import ServedModel

DIM, BEFORE, MOST = 5, 500, 1500
NAMES = [f"c{i}" for i in range(DIM)]
Row = np.ndarray


def _first(rows: Row, _: np.random.Generator) -> Row:
    rows[:, 0] = 0.7
    return rows


def _far(rows: Row, rng: np.random.Generator) -> Row:
    rows[rng.random(len(rows)) < 0.05] += 8
    return rows


def _copies(rows: Row, _: np.random.Generator) -> Row:
    return np.repeat(rows[: len(rows) // 5 + 1], 5, axis=0)[: len(rows)]


CHANGES: Mapping[str, Callable[[Row, np.random.Generator], Row]] = {
    "no change": lambda x, _: x,
    "no change, each input five times": _copies,
    "all columns 0": lambda x, _: x * 0,
    "one column frozen": _first,
    "all values halved": lambda x, _: x / 2,
    "all columns + 1 standard deviation": lambda x, _: x + 1,
    "5 % of the rows far away": _far,
    "one column of another sign": lambda x, _: x * np.array([-1.0, 1, 1, 1, 1]),
    "two columns exchanged": lambda x, _: x[:, [1, 0, 2, 3, 4]],
    "all columns + 3 standard deviations": lambda x, _: x + 3,
}


def draw(n: int, rng: np.random.Generator) -> Row:
    """Return rows of five columns; the second column depends on the first."""
    x = rng.normal(size=(n, DIM))
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1] + 0.5
    return x


def served(n: int, folder: str) -> ServedModel:
    """Return a net with detectors that were calibrated on ``n`` rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    paths = []
    for seed in (1, 2):
        path = f"{folder}/{seed}.csv"
        head = ",".join(NAMES)
        np.savetxt(
            path, draw(n, np.random.default_rng(seed)), delimiter=",", header=head, comments=""
        )
        paths.append(path)
    options: dict[str, Any] = {"number_columns": ",".join(NAMES)}
    stream = sonde.read(net, paths[0], sites=["1"], **options)
    fitted = sonde.fit([Mahalanobis(), KNN(k=4)], stream, calibrate=0, progress=False)
    probe = sonde.calibrate(fitted, net, paths[1], progress=False, **options)
    return ServedModel(net, probe, options=options)


def told(model: ServedModel, change: Callable[..., Row], seed: int) -> int | None:
    """Return the number of changed inputs up to the first alarm; None without an alarm."""
    assert model.fitted is not None
    rng, changes = np.random.default_rng(seed), Changes(model.fitted)
    rows = np.concatenate([draw(BEFORE, rng), change(draw(MOST, rng), rng)])
    for first in range(0, len(rows), 32):
        each = [dict(zip(NAMES, row.tolist(), strict=True)) for row in rows[first : first + 32]]
        items = model.prepare(each, [bytes(16)] * len(each), None)
        found = model.answer(items).answers
        seen = [
            Seen(i.content, i.numbers, a.answer, a.probability)
            for i, a in zip(items, found, strict=True)
        ]
        changes.update([a.verdict for a in found if a.verdict is not None], 0.0, seen)
        if changes.alarms:
            return changes.alarms[0].told - BEFORE + 1
    return None


def main() -> None:
    """Print the table."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100, help="streams of each change")
    parser.add_argument("--calibrated", type=int, default=2000, help="rows that calibrate")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = served(asked.calibrated, folder)
        print(f"{asked.streams} streams, {asked.calibrated} rows calibrate\n")
        print("| change | told | inputs until told, median |\n|---|---|---|")
        for name, change in CHANGES.items():
            each = [told(model, change, 100 + seed) for seed in range(asked.streams)]
            known = [n for n in each if n is not None]
            median = f"{np.median(known):.0f}" if known else "-"
            print(f"| {name} | {len(known)} of {len(each)} | {median} |", flush=True)


if __name__ == "__main__":
    main()
