"""Scan drawn worlds as users do. Each draw has a result file, so a stopped run goes on."""

import json
import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from tools.faultgen.drawing import bounded, draw, group_of, healthy
from tools.faultgen.judging import CRASHED, LATE, judged, judged_healthy
from tools.faultgen.tasks import Rows, Task
from tools.faultgen.worlds import World, score

SECONDS = 90.0
"""Processor time of one scan, after which it counts as without end."""


class TookTooLong(BaseException):
    """Not an Exception: a scan catches those of its checks."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TookTooLong` after some processor time."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def as_given(task: Task, rows: Rows) -> Any:
    """Return rows as a user has them: a data frame for one table, else a dictionary of arrays.

    Rows are numbered by their ids, so that those that a finding lists are known.
    """
    arrays = {n: t.numpy() for n, t in rows.tensors.items()}
    label = rows.target.numpy()
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    ids = [str(i) for i in range(len(rows))]
    only = next(iter(task.specs.values()))
    if len(arrays) == 1 and only.columns and only.axes == ("column",) and label.ndim == 1:
        frame = pd.DataFrame(next(iter(arrays.values())), columns=list(only.columns))
        return frame.assign(label=label, id=ids)
    return {**arrays, "label": label, "id": ids}


def scanned(world: World, seconds: float = SECONDS) -> dict[str, Any]:
    """Return the JSON of a scan of the given rows."""
    import sonde

    with at_most(seconds):
        data = as_given(world.task, world.given)
        return sonde.scan(world.net, data, progress=False).json()


def commit() -> str:
    """Return the commit of the scanned sonde."""
    import sonde

    place = Path(sonde.__file__).parent
    words = ["git", "-C", str(place), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def about(world: World) -> dict[str, Any]:
    """Return what a table says of a world."""
    return {
        "task": world.task.shape,
        "source": world.task.source,
        "answers": world.task.kind,
        "family": world.family,
        "inputs": len(world.task.specs),
        "roles": sorted({s.role for s in world.task.specs.values()}),
        "healthy": round(score(world.task.kind, world.net, world.fresh), 4),
    }


def tried(seed: int, closed: bool) -> dict[str, Any]:
    """Draw a world with a fault, scan it and judge the report."""
    began = time.process_time()
    made = draw(seed, closed)
    result = about(made.healthy) | {
        "seed": seed,
        "kind": made.fault.kind,
        "group": group_of(made.fault.kind),
        "planted": round(
            bounded(score(made.faulty.task.kind, made.faulty.net, made.faulty.fresh)), 4
        ),
        "truth": made.truth.json(),
        "draw_seconds": round(time.process_time() - began, 2),
    }
    return result | _outcome(made.faulty, lambda report: judged(made, report).json())


def tried_healthy(seed: int) -> dict[str, Any]:
    """Draw a world without a fault and scan it."""
    began = time.process_time()
    world = healthy(seed)
    result = about(world) | {"seed": seed, "kind": "healthy", "group": "healthy"}
    result["draw_seconds"] = round(time.process_time() - began, 2)
    return result | _outcome(world, lambda report: judged_healthy(report, world))


def _outcome(world: World, judge: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    began = time.process_time()
    random.seed(0)
    try:
        report = scanned(world)
    except TookTooLong:
        return {"verdict": LATE, "commit": commit()}
    except Exception:
        return {"verdict": CRASHED, "error": traceback.format_exc()[-1200:], "commit": commit()}
    seconds = round(time.process_time() - began, 2)
    findings = [f for f in report["findings"] if not f["ignored"]]
    cause = next((f for f in findings if f["code"] == report["cause"]), None)
    said = {
        "commit": commit(),
        "scan_seconds": seconds,
        "cause": None if cause is None else f"{cause['code']}: {cause['sentence']}",
        "fix": None if cause is None else cause["fix"],
        "loud": [f"{f['code']}: {f['sentence']}" for f in findings if f["level"] != "note"],
        "failed": [c["code"] for c in report["checks"] if c["state"] == "failed"],
    }
    return said | judge(report)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a stored result, made now if there is none."""
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(made, indent=1), "utf-8")
    part.rename(path)
    return made
