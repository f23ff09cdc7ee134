"""Inputs until ``sonde serve`` detects a change of the traffic.

A table of five columns, a net, Mahalanobis and KNN at one layer, calibrated on other rows. Every
stream has 500 in-distribution rows and then rows that are changed; counted are the changed rows up
to the first alarm. Streams without a change show how often the promise is broken. The rows are
scored all at once, and the change detectors of the server get the scores one by one. ``--peers``
adds libraries that watch the columns of the same streams, each in an environment of its own.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from benchmarks.peers import UNMEASURED, in_peer
from tools.figures._table import Row, Table, Words, chosen, head
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
Rows = np.ndarray
Alarms = list[int | None]


def _first(rows: Rows, _: np.random.Generator) -> Rows:
    rows[:, 0] = 0.7
    return rows


def _far(rows: Rows, rng: np.random.Generator) -> Rows:
    rows[rng.random(len(rows)) < 0.05] += 8
    return rows


def _copies(rows: Rows, _: np.random.Generator) -> Rows:
    return np.repeat(rows[: len(rows) // 5 + 1], 5, axis=0)[: len(rows)]


CHANGES: Mapping[str, Callable[[Rows, np.random.Generator], Rows]] = {
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


def draw(n: int, rng: np.random.Generator) -> Rows:
    """Return rows of five columns; the second column depends on the first."""
    x = rng.normal(size=(n, DIM))
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1] + 0.5
    return x


def stream_of(change: Callable[[Rows, np.random.Generator], Rows], seed: int) -> Rows:
    """Return the rows of one stream, in order."""
    rng = np.random.default_rng(seed)
    return np.concatenate([draw(BEFORE, rng), change(draw(MOST, rng), rng)])


def net() -> nn.Module:
    """Return the model that is served."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def probe_of(model: nn.Module, rows: Sequence[Rows], folder: Path) -> Fitted:
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

    def __init__(self, model: nn.Module, probe: Fitted, rows: Rows) -> None:
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


def first_alarms(model: nn.Module, probe: Fitted, streams: np.ndarray) -> Alarms:
    """Return the row of the first alarm in each stream."""
    scored = Scored(model, probe, streams.reshape(-1, DIM))
    return [first_alarm(probe, scored, i * (BEFORE + MOST)) for i in range(len(streams))]


def cell_of(alarms: Alarms, n: int, before: int = BEFORE) -> str:
    """Return how many changes were detected, after how many rows, and the alarms before."""
    late = [row - before + 1 for row in alarms if row is not None and row >= before]
    early = sum(row is not None and row < before for row in alarms)
    middle = f", {np.median(late):.0f}" if late else ""
    return f"{len(late)} of {n}{middle}" + (f" ({early} before)" if early else "")


def table(
    words: Words = (),
    *,
    streams: int = 100,
    calibrated: int = 2000,
    peers: tuple[Literal["river", "evidently"], ...] = (),
) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Changes whose names hold one of these words.
    streams
        Streams of each change.
    calibrated
        Rows that calibrate.
    peers
        Libraries that watch the same streams.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [draw(calibrated, np.random.default_rng(seed)) for seed in (1, 2)]
        model, path = net(), Path(folder) / "streams.npz"
        probe = probe_of(model, rows, Path(folder))
        every = {
            name: np.stack([stream_of(change, 100 + i) for i in range(streams)])
            for name, change in chosen(CHANGES, words)
        }
        np.savez(path, reference=rows[1], **every)  # pyright: ignore[reportArgumentType]
        columns: dict[str, Mapping[str, Alarms]] = {}
        for peer in peers:
            options = {"peer": peer, "path": str(path), "most": min(PEERS[peer], streams)}
            try:
                answer = in_peer("change_runner", False, peer)("first_alarms", **options)
                columns[answer["version"]] = answer["alarms"]
            except UNMEASURED as error:
                yield f"{peer} was not measured: {error}"
    yield f"{streams} streams, {calibrated} rows calibrate"
    yield f"promise: an alarm without a change in at most {(BEFORE + MOST) / PATIENCE:.2%}\n"
    yield head("change", "sonde", *columns)

    def cells(name: str) -> list[str]:
        alarms = [first_alarms(model, probe, every[name]), *(c[name] for c in columns.values())]
        return [cell_of(each, len(each)) for each in alarms]

    for name in every:
        yield Row((name,), partial(cells, name))
