"""Print false alarms and delay of every alarm over simulated streams.

It shows for both forms of the e-process how often a stream without
change alarms, and how many scores after a change it takes; for the alarms that start again, how
many scores come before a false alarm. The frozen form ranks against a fixed calibration set: its
p-values share the luck of that set, and the promise breaks on long streams.
"""

from dataclasses import dataclass

import numpy as np
from tools.figures._table import Table

from sonde.alarms import ChangeDetector, Cusum, mixture_wealth
from sonde.alarms.eprocess import Ranks

DELTA = 0.05
SIZES = (100, 500)
SHIFTS = (0.0, 0.5, 1.0, 2.0)
PATIENCE = 200


@dataclass(frozen=True)
class Line:
    """One line of the table; ``shift`` is in standard deviations, from ``change`` on."""

    form: str
    n: int
    shift: float
    streams: int
    horizon: int
    delta: float
    false_alarms: int
    found: int
    delay: float


def online(calibration: np.ndarray, stream: np.ndarray, seed: int) -> np.ndarray:
    """Return the p-values of a stream, each among all earlier scores."""
    ranks = Ranks(calibration.tolist(), seed)
    return np.array([ranks.p_value(s) for s in stream.tolist()])


def frozen(calibration: np.ndarray, stream: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the p-values of a stream, each among the calibration scores alone (no ties)."""
    ordered = np.sort(calibration)
    above = len(ordered) - np.searchsorted(ordered, stream, side="right")
    return (above + u) / (len(ordered) + 1)


def simulate(form: str, n: int, shift: float, streams: int, horizon: int) -> Line:
    """Return one line: normal scores, the change after a quarter of the horizon."""
    change = horizon // 4 if shift else horizon
    false, delays = 0, []
    for seed in range(streams):
        rng = np.random.default_rng([seed, n])
        held, scores = rng.normal(size=n), rng.normal(size=horizon)
        scores[change:] += shift
        p = (
            online(held, scores, seed)
            if form == "online"
            else frozen(held, scores, rng.random(horizon))
        )
        reached = np.nonzero(mixture_wealth(p) >= 1 / DELTA)[0]
        if len(reached) and reached[0] < change:
            false += 1
        elif len(reached):
            delays.append(reached[0] - change + 1)
    delay = float(np.median(delays)) if delays else float("nan")
    return Line(form, n, shift, streams, horizon, DELTA, false, len(delays), delay)


def promises(streams: int = 1000, horizon: int = 1000) -> list[Line]:
    """Return all lines: without change for both forms, with changes for the online one."""
    plain = [simulate(f, n, 0.0, streams, horizon) for f in ("online", "frozen") for n in SIZES]
    return plain + [simulate("online", 500, s, streams, horizon) for s in SHIFTS[1:]]


@dataclass(frozen=True)
class Run:
    """How many scores an alarm that starts again waits; cut at ``horizon``, so at least these."""

    form: str
    streams: int
    horizon: int
    to_false_alarm: float
    delay: float


def first_alarm(form: str, seed: int, horizon: int, change: int) -> int:
    """Return the first score from ``change`` on, counted from 1, at which the alarm is raised."""
    rng = np.random.default_rng([seed, 3])
    watch, total = ChangeDetector(rng.normal(size=500), patience=PATIENCE, seed=seed), Cusum()
    for step in range(horizon):
        score = rng.normal() + (step >= change > 0)
        if form == "ChangeDetector":
            alarm = watch.update(score).alarm
        else:
            total = Cusum() if total.alarm else total.after(score)
            alarm = total.alarm
        if alarm and step >= change:
            return step - change + 1
    return horizon - change


def runs(streams: int = 1000, horizon: int = 2000) -> list[Run]:
    """Return the mean waits of both: without a change, and after one of a standard deviation."""
    found = []
    for form in ("ChangeDetector", "Cusum"):
        waits = [
            np.mean([first_alarm(form, seed, horizon, change) for seed in range(streams)])
            for change in (0, 250)
        ]
        found.append(Run(form, streams, horizon, *(float(w) for w in waits)))
    return found


def runs_text(found: list[Run]) -> str:
    """Return the waits as text."""
    lines = [
        f"{found[0].streams} streams, cut at {found[0].horizon} scores; change by 1 after 250",
        "form            promise  mean scores to a false alarm  mean delay",
    ]
    for run in found:
        promise = f">= {PATIENCE}" if run.form == "ChangeDetector" else "~ 940"
        lines.append(f"{run.form:<14} {promise:>8} {run.to_false_alarm:>29.0f} {run.delay:>11.1f}")
    return "\n".join(lines)


def text(rows: list[Line]) -> str:
    """Return the table as text."""
    lines = [
        f"{rows[0].streams} streams of {rows[0].horizon} scores, promise {DELTA:g}",
        "form     calibration  shift  false alarms   found   delay",
    ]
    for r in rows:
        found = "-" if r.shift == 0 else f"{r.found / r.streams:.1%}"
        delay = "-" if r.shift == 0 else f"{r.delay:g}"
        lines.append(
            f"{r.form:<8} {r.n:>11} {r.shift:>6g} {r.false_alarms / r.streams:>13.1%} "
            f"{found:>7} {delay:>7}"
        )
    return "\n".join(lines)


def table(streams: int = 1000, horizon: int = 1000) -> Table:
    """Print both tables.

    Parameters
    ----------
    streams
        Simulated streams of each line.
    horizon
        Scores of each stream of the first table.
    """
    yield text(promises(streams, horizon))
    yield ""
    yield runs_text(runs(streams))
