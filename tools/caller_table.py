"""Bursts of one caller in front of ``sonde serve``: ``python -m tools.caller_table``.

The table, the net and the detectors of ``tools.change_table``, with ten callers: each has a mean of
its own in every column. Calibrated is on rows of all callers. A stream has 1,000 rows, and then
400 in which something happens. Each stream is watched twice: without names of the callers, and with
them. Counted are streams with an alarm, and the inputs from the event up to it.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tools.change_table import DIM, Scored, Told, draw, net, probe_of

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


def cell_of(alarms: Told) -> str:
    """Return how many streams had an alarm in the event, and after how many inputs."""
    late = [row - BEFORE + 1 for row in alarms if row is not None and row >= BEFORE]
    early = sum(row is not None and row < BEFORE for row in alarms)
    middle = f", {np.median(late):.0f}" if late else ""
    return f"{len(late)} of {len(alarms)}{middle}" + (f" ({early} before)" if early else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100, help="streams of each event")
    parser.add_argument("--only", nargs="*", default=[*EVENTS], choices=[*EVENTS])
    asked = parser.parse_args()
    model, rng = net(), np.random.default_rng(1)
    rows = [draw(2000, rng) + MEANS[rng.integers(N, size=2000)] for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        probe = probe_of(model, rows, Path(folder))
    print(f"{asked.streams} streams, 1,000 inputs before the event\n")
    print("| event | without names | with names |\n|---|---|---|")
    for event in asked.only:
        found: tuple[Told, Told] = ([], [])
        for seed in range(asked.streams):
            stream, names = stream_of(event, 100 + seed)
            scored = Scored(model, probe, stream)
            for alarms, given in zip(found, (None, names), strict=True):
                alarms.append(first_alarm(probe, scored, given))
        print(f"| {event} | {' | '.join(map(cell_of, found))} |", flush=True)


if __name__ == "__main__":
    main()
