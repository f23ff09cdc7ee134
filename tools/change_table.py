"""Inputs until ``sonde serve`` detects a change of the traffic: ``python -m tools.change_table``.

A table of five columns, a net, Mahalanobis and KNN at one layer, calibrated on other rows. Every
stream has 500 in-distribution rows and then rows that are changed; counted are the changed rows up
to the first alarm. Streams without a change show how often the promise is broken. The rows are
scored all at once, and the change detectors of the server get the scores one by one. ``--peers``
adds libraries that watch the columns of the same streams, each in an environment of its own.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.child import run_child
from benchmarks.environments import PeerError, python_of
from torch import nn

import sonde
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.serving.changes import PATIENCE, Changes, Seen
from sonde.serving.verdicts import Verdict

DIM, BEFORE, MOST = 5, 500, 1500
NAMES = [f"c{i}" for i in range(DIM)]
PEERS = {"river": 100, "evidently": 10}
"""Streams of each change that a library gets at most; a report of Evidently takes long."""
Row = np.ndarray
Told = list[int | None]


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


def stream_of(change: Callable[[Row, np.random.Generator], Row], seed: int) -> Row:
    """Return the rows of one stream, in order."""
    rng = np.random.default_rng(seed)
    return np.concatenate([draw(BEFORE, rng), change(draw(MOST, rng), rng)])


def net() -> nn.Module:
    """Return the model that is served."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def probe_of(model: nn.Module, rows: Sequence[Row], folder: Path) -> Fitted:
    """Return detectors that were fitted on the first rows and calibrated on the second."""
    paths = [folder / f"{i}.csv" for i in range(2)]
    for path, each in zip(paths, rows, strict=True):
        np.savetxt(path, each, delimiter=",", header=",".join(NAMES), comments="")
    options: dict[str, Any] = {"number_columns": ",".join(NAMES)}
    stream = sonde.read(model, str(paths[0]), sites=["1"], **options)
    fitted = sonde.fit([Mahalanobis(), KNN(k=4)], stream, calibrate=0, progress=False)
    return sonde.calibrate(fitted, model, str(paths[1]), progress=False, **options)


class Scored:
    """Scores and answers of many rows, as the server gives them to its change detectors."""

    def __init__(self, model: nn.Module, probe: Fitted, rows: Row) -> None:
        x = torch.tensor(rows, dtype=torch.float32)
        with torch.inference_mode():
            states = model[:2](x)  # pyright: ignore[reportIndexIssue]
            likely = model(x).softmax(1).max(1)
        self.rows, self.keys = rows, [*probe.scorers]
        self.scores = [scorer.score(states).tolist() for scorer in probe.scorers.values()]
        self.answers = [f"class {i}" for i in likely.indices.tolist()]
        self.probabilities = likely.values.tolist()

    def of(self, i: int, caller: bytes = b"") -> tuple[Verdict, Seen]:
        """Return the verdict on a row, and what else is known of it."""
        each: dict[Key, tuple[float, float | None]] = {
            key: (scores[i], None) for key, scores in zip(self.keys, self.scores, strict=True)
        }
        row = self.rows[i]
        numbers = dict(zip(NAMES, row.tolist(), strict=True))
        seen = Seen(row.tobytes(), numbers, self.answers[i], self.probabilities[i], caller)
        return Verdict(None, None, each, None), seen


def first_alarm(probe: Fitted, scored: Scored, first: int) -> int | None:
    """Return the row of the first alarm in a stream; None without an alarm."""
    changes = Changes(probe)
    for i in range(BEFORE + MOST):
        verdict, seen = scored.of(first + i)
        if changes.update([verdict], 0.0, [seen]):
            return changes.alarms[0].told
    return None


def first_alarms(model: nn.Module, probe: Fitted, streams: np.ndarray) -> Told:
    """Return the row of the first alarm in each stream."""
    scored = Scored(model, probe, streams.reshape(-1, DIM))
    return [first_alarm(probe, scored, i * (BEFORE + MOST)) for i in range(len(streams))]


def cell_of(alarms: Told, n: int) -> str:
    """Return how many changes were detected, after how many rows, and the alarms before."""
    late = [row - BEFORE + 1 for row in alarms if row is not None and row >= BEFORE]
    early = sum(row is not None and row < BEFORE for row in alarms)
    middle = f", {np.median(late):.0f}" if late else ""
    return f"{len(late)} of {n}{middle}" + (f" ({early} before)" if early else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100, help="streams of each change")
    parser.add_argument("--calibrated", type=int, default=2000, help="rows that calibrate")
    parser.add_argument("--peers", nargs="*", default=[], choices=[*PEERS], help="libraries")
    parser.add_argument("--only", nargs="*", default=[*CHANGES], choices=[*CHANGES])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [draw(asked.calibrated, np.random.default_rng(seed)) for seed in (1, 2)]
        model, path = net(), Path(folder) / "streams.npz"
        probe = probe_of(model, rows, Path(folder))
        every = {
            name: np.stack([stream_of(CHANGES[name], 100 + i) for i in range(asked.streams)])
            for name in asked.only
        }
        np.savez(path, reference=rows[1], **every)  # pyright: ignore[reportArgumentType]
        columns: dict[str, Mapping[str, Told]] = {}
        for peer in asked.peers:
            most = min(PEERS[peer], asked.streams)
            options = {"peer": peer, "path": str(path), "most": most}
            try:
                target = "benchmarks.change_runner:first_alarms"
                found = run_child(target, python_of(peer), **options)
                columns[found["version"]] = found["alarms"]
            except (PeerError, RuntimeError) as error:
                print(f"{peer} was not measured: {error}")
        print(f"{asked.streams} streams, {asked.calibrated} rows calibrate")
        print(f"promise: an alarm without a change in at most {(BEFORE + MOST) / PATIENCE:.2%}\n")
        print(f"| change | {' | '.join(['sonde', *columns])} |")
        print(f"|---|{'---|' * (1 + len(columns))}")
        for name, streams in every.items():
            cells = [cell_of(first_alarms(model, probe, streams), len(streams))]
            cells += [cell_of(column[name], len(column[name])) for column in columns.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
