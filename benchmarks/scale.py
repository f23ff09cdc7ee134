"""Rows of four sites to disk, and a covariance at each, as written with us and with others.

Every arm runs in a process of its own and in its own environment, from one checkpoint and one file
of texts; then once more, killed at half of its own time.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import ONE_THREAD, ROOT, ChildError, run_child
from benchmarks.environments import PeerError, python_of
from benchmarks.rows import Row, not_measured
from benchmarks.scale_arms import ARMS, COVARIANCE, DISK
from benchmarks.scale_runner import LOADED
from benchmarks.size import Size
from benchmarks.storing import folder

NAME, OURS, PLAIN = "scale", "sonde", "plain hooks"
PEERS = ("transformer-lens", "nnsight")
JOBS = (DISK, COVARIANCE)
AGREES, BUDGET = 1e-5, 1.0
PATIENCE_SECONDS = 1800
AGAIN = "plain hooks again"

Taken = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Place:
    """Where the arms run, on what.

    Parameters
    ----------
    home : Path
    blocks : list of int
    n_rows : int
        Of each site.
    """

    home: Path
    blocks: list[int]
    n_rows: int

    def of(self, arm: str, job: str, turn: int | str = 0) -> str:
        """Return where an arm writes."""
        return str(self.home / f"{arm}-{job}-{turn}".replace(" ", "-"))

    def options(self, arm: str, job: str, turn: int | str = 0) -> dict[str, Any]:
        """Return what an arm's process is told."""
        name = PLAIN if arm == AGAIN else arm
        place = self.of(arm, job, turn)
        return {
            "arm": name,
            "job": job,
            "home": str(self.home),
            "place": place,
            "blocks": self.blocks,
        }


def scale_rows(size: Size) -> list[Row]:
    """Time, memory, disk, lines and what a kill leaves, of every arm and job."""
    depth, width, texts, length = size.pick((12, 768, 1000, 64), (2, 64, 48, 16))
    blocks = size.pick([2, 5, 8, 11], [0, 1])
    pythons, rows = _interpreters(size.offline)
    with folder() as home:
        target = "benchmarks.scale_runner:make"
        shape: dict[str, Any] = {"depth": depth, "width": width, "texts": texts, "length": length}
        run_child(target, sys.executable, home=str(home), **shape, warm=size.pick(32, 16))
        place = Place(home, blocks, texts * length)
        rounds = min(size.rounds, size.pick(3, 1))
        for job in JOBS:
            taken, broken = _taken(place, pythons, job, rounds)
            rows += broken
            if OURS in taken and PLAIN in taken and AGAIN in taken:
                rows += _figures(job, taken, pythons) + _agreement(job, taken, place)
            if job == DISK:
                rows += _killed(place, pythons, taken)
    return rows


def _interpreters(offline: bool) -> tuple[dict[str, Path], list[Row]]:
    pythons, rows = {OURS: Path(sys.executable), PLAIN: Path(sys.executable)}, []
    for peer in PEERS:
        try:
            pythons[peer] = python_of(peer, offline)
        except PeerError as error:
            rows.append(not_measured(NAME, f"scale, against {peer}", str(error)))
    return pythons, rows


def _taken(
    place: Place, pythons: dict[str, Path], job: str, rounds: int
) -> tuple[Taken, list[Row]]:
    """Return what every arm took in every round; an arm that fails is left out and said."""
    target, taken, broken = "benchmarks.scale_runner:work", {}, []
    names = [*pythons, AGAIN]
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            python = pythons.get(name, pythons[PLAIN])
            try:
                found = run_child(target, python=python, **place.options(name, job, turn))
            except ChildError as error:
                broken.append(not_measured(NAME, f"scale, {job}, {name}", str(error)))
                continue
            _say(f"{job}, {name}: {json.dumps(found)}")
            taken.setdefault(name, []).append(found)
    return taken, broken


def _figures(job: str, taken: Taken, pythons: dict[str, Path]) -> list[Row]:
    rows = []
    for name in pythons:
        if name in taken:
            rows.append(_own(job, name, taken[name]))
    for name in pythons:
        if name != OURS and name in taken:
            rows += [_ratio(job, name, what, taken) for what in ("wall", "process", "peak")]
    return rows


def _own(job: str, name: str, taken: list[dict[str, float]]) -> Row:
    wall, process, peak, size = (
        statistics.median(t[what] for t in taken) for what in ("wall", "process", "peak", "bytes")
    )
    on_disk = f"{size / 1e6:.1f} MB on disk, " if job == DISK or name == OURS else ""
    note = f"process time {process:.1f} s, {peak:.0f} MiB beyond the model, {on_disk}"
    note += f"{ARMS[name].n_lines(job)} lines of user code"
    return Row(NAME, f"scale, {job}, {name}", wall, "s", rounds=len(taken), note=note)


def _ratio(job: str, peer: str, what: str, taken: Taken) -> Row:
    words = {"wall": "time", "process": "process time", "peak": "memory beyond the model"}
    ours, theirs, plain, again = ([t[what] for t in taken[n]] for n in (OURS, peer, PLAIN, AGAIN))
    noise = [b / max(a, 1e-9) for a, b in zip(plain, again, strict=True)]
    middle = statistics.median(a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True))
    shown = ", ".join(f"{x:.3f}" for x in noise)
    return Row(
        NAME,
        f"scale, {job}, {words[what]} over {peer}",
        middle,
        budget=BUDGET,
        spread=max(abs(x - 1.0) for x in noise),
        rounds=len(ours),
        note=f"plain hooks again {shown}",
    )


def _agreement(job: str, taken: Taken, place: Place) -> list[Row]:
    """Compare the rows, or the covariances, of every arm with those of plain hooks."""
    rows, whole = [], place.of(PLAIN, job)
    for name in taken:
        if name in (PLAIN, AGAIN):
            continue
        mine = place.of(name, job)
        if job == DISK:
            target = "benchmarks.scale_runner:left"
            found = run_child(target, arm=name, place=mine, blocks=place.blocks, whole=whole)
            apart = found["apart"] if found["rows"] == place.n_rows else math.inf
            note = f"{found['rows']} rows of each site, expected {place.n_rows}"
        else:
            target = "benchmarks.scale_runner:differ"
            apart = run_child(target, first=f"{mine}-result", second=f"{whole}-result")
            note = "relative to the largest entry"
        what = f"scale, {job}, largest difference of {name} from plain hooks"
        rows.append(Row(NAME, what, apart, "", AGREES, note=note))
    return rows


def _killed(place: Place, pythons: dict[str, Path], taken: Taken) -> list[Row]:
    """Kill every arm at half of its own time, and look at what is left."""
    rows, whole = [], place.of(PLAIN, DISK)
    for name, python in pythons.items():
        if name not in taken:
            continue
        options = place.options(name, DISK, "killed")
        half = statistics.median(t["wall"] for t in taken[name]) / 2
        what = f"scale, share of the rows lost when killed half way, {name}"
        try:
            _kill(python, options, half)
            rows.append(_what_is_left(what, python, options, whole, place.n_rows))
        except ChildError as error:
            rows.append(not_measured(NAME, what, str(error)))
        _say(f"{what}: {rows[-1].value:.3f}, {rows[-1].note}")
    return rows


def _what_is_left(what: str, python: Path, options: dict[str, Any], whole: str, n_rows: int) -> Row:
    target = "benchmarks.scale_runner:left"
    look = {name: options[name] for name in ("arm", "place", "blocks")}
    found = run_child(target, python=python, **look, whole=whole)
    note = f"{found['bytes'] / 1e6:.1f} MB on disk; the same command begins again"
    if found["rows"]:
        again = run_child("benchmarks.scale_runner:work", python=python, **options)
        then = run_child(target, python=python, **look, whole=whole)
        note = (
            f"{found['bytes'] / 1e6:.1f} MB on disk, rows differ by {found['apart']:.1e}; the "
            f"same command goes on: {again['wall']:.1f} s, then {then['rows']} rows of "
            f"{n_rows} differ by {then['apart']:.1e}"
        )
    return Row(NAME, what, 1.0 - found["rows"] / n_rows, note=note)


def _kill(python: Path, options: dict[str, Any], after_seconds: float) -> None:
    """Start a job, and kill it ``after_seconds`` after its model was loaded."""
    target = "benchmarks.scale_runner:work"
    command = [str(python), "-m", "benchmarks.child", target, json.dumps(options)]
    loaded = Path(f"{options['place']}-{LOADED}")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        end = time.monotonic() + PATIENCE_SECONDS
        while not loaded.exists() and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if not loaded.exists():
            child.kill()
            raise ChildError(f"no model was loaded, exit code {child.wait()}")
        time.sleep(after_seconds)
        if child.poll() is not None:
            raise ChildError(f"it had ended before the kill, exit code {child.returncode}")
        child.kill()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
