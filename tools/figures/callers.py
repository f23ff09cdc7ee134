"""Bursts of one caller in front of ``sonde serve``, with and without the names of the callers.

The table, the net and the detectors of the figure ``changes``, with ten callers: each has a mean of
its own in every column. Calibrated is on rows of all callers. A stream has 1,000 rows, and then
400 in which something happens. Each stream is watched twice: without names of the callers, and with
them. Counted are streams with an alarm, and the inputs from the event up to it.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tools.figures._table import Row, Table, Words, chosen, head
from tools.figures.changes import DIM, Alarms, Scored, cell_of, draw, net, probe_of

from sonde.run.fitting.fitted import Fitted
from sonde.serving.changes import Changes

N, BEFORE, AFTER, SPREAD = 10, 1000, 400, 0.6
Names = np.ndarray
MEANS = SPREAD * np.random.default_rng(0).normal(size=(N, DIM))
LOUD = int(np.abs(MEANS).sum(axis=1).argmax())
"""The caller that is furthest from the others."""


def _in_a_row(names: Names, _: np.random.Generator) -> Names:
    names[BEFORE : BEFORE + AFTER // 2] = LOUD
    return names


def _loud(names: Names, rng: np.random.Generator) -> Names:
    names[BEFORE:][rng.random(AFTER) < 0.9] = LOUD
    return names


def _same(names: Names, _: np.random.Generator) -> Names:
    return names


def _unmoved(rows: np.ndarray, *_: object) -> np.ndarray:
    return rows


def _batch_job(rows: np.ndarray, names: Names, rng: np.random.Generator) -> np.ndarray:
    """Let the caller send rows that are nearly equal."""
    return np.where((names == LOUD)[:, None], 0.1 * rng.normal(size=rows.shape) + rows[0], rows)


EVENTS: Mapping[str, tuple[Callable[..., Names], Callable[..., np.ndarray]]] = {
    "nothing": (_same, _unmoved),
    "200 inputs of one caller in a row": (_in_a_row, _unmoved),
    "one caller asks 9 of 10 inputs": (_loud, _unmoved),
    "one caller sends 200 similar inputs in a row": (_in_a_row, _batch_job),
    "all columns + 1 standard deviation": (_same, lambda rows, *_: rows + 1),
    "all values halved": (_same, lambda rows, *_: rows / 2),
    "all columns 0": (_same, lambda rows, *_: rows * 0),
}


def stream_of(event: str, seed: int) -> tuple[np.ndarray, Names]:
    """Return the rows of a stream and their callers."""
    rng, (callers, moved) = np.random.default_rng(seed), EVENTS[event]
    names = callers(rng.integers(N, size=BEFORE + AFTER), rng)
    rows = draw(len(names), rng) + MEANS[names]
    rows[BEFORE:] = moved(rows[BEFORE:], names[BEFORE:], rng)
    return rows, names


def first_alarm(probe: Fitted, scored: Scored, names: Names | None) -> int | None:
    """Return the row of the first alarm in a stream; None without an alarm."""
    changes = Changes(probe)
    for i in range(BEFORE + AFTER):
        verdict, seen = scored.of(i, b"" if names is None else b"caller %d" % names[i])
        if changes.update([verdict], 0.0, [seen]):
            return i
    return None


def table(words: Words = (), *, streams: int = 100) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Events whose names hold one of these words.
    streams
        Streams of each event.
    """
    model, rng = net(), np.random.default_rng(1)
    rows = [draw(2000, rng) + MEANS[rng.integers(N, size=2000)] for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        probe = probe_of(model, rows, Path(folder))
    yield f"{streams} streams, 1,000 inputs before the event\n"
    yield head("event", "without names", "with names")

    def cells(event: str) -> list[str]:
        alarms: tuple[Alarms, Alarms] = ([], [])
        for seed in range(streams):
            stream, names = stream_of(event, 100 + seed)
            scored = Scored(model, probe, stream)
            for each, given in zip(alarms, (None, names), strict=True):
                each.append(first_alarm(probe, scored, given))
        return [cell_of(each, streams, BEFORE) for each in alarms]

    for event, _ in chosen(EVENTS, words):
        yield Row((event,), partial(cells, event))
