"""Run the command line of sonde on folders. Each run has a result file, so a stopped one goes on.

A result is written by one rename; several processes share a folder of results through a lock file
for each entry. A run that is stopped leaves no half result.
"""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.field.judging import CRASHED, LATE, REFUSED, said, verdict
from tools.field.obtain import ROOT
from tools.field.plain import figure, plain
from tools.field.planting import Fault
from tools.field.subjects import Subject, copied

SECONDS = 120.0
SCREEN = 100


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (None: it took too long), texts, processor seconds."""

    code: int | None
    screen: str
    errors: str
    seconds: float

    @property
    def verdict(self) -> str | None:
        """What an outcome without a report is called, else None."""
        if self.code is None:
            return LATE
        if self.code == 0:
            return None
        return CRASHED if "Traceback" in self.errors or self.code not in (1, 2) else REFUSED


def command(words: Sequence[str], place: Path, seconds: float = SECONDS) -> Outcome:
    """Run ``sonde WORDS`` in a folder; `seconds` of processor time at most.

    Processor time, not wall time, so that a busy machine gives the same table.
    """
    # the factories of subjects import this package, from whatever folder the command starts in
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": str(SCREEN), "PYTHONPATH": path}
    typed = [sys.executable, "-m", "sonde", *words]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))

    before = _processor_seconds()
    ended = subprocess.run(
        typed, cwd=place, env=environment, capture_output=True, text=True, preexec_fn=limited
    )
    passed = _processor_seconds() - before
    late = ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    return Outcome(None if late else ended.returncode, ended.stdout, ended.stderr, passed)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process may make the result: nobody has, and nobody is at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield not path.exists()


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return a result, made if nobody has; None if another process is making it."""
    with claimed(path) as mine:
        if mine:
            made = {"commit": commit()} | make()
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(made, indent=1), "utf-8")
            aside.replace(path)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def commit() -> str:
    """Return the commit that runs, with a + if files differ from it, and today's date."""
    words = ["git", "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return f"{ran.stdout.strip() or 'no commit'} of {datetime.now(UTC):%Y-%m-%d}"


@contextmanager
def copy_of(name: str) -> Iterator[tuple[Subject, Path]]:
    """Yield a subject and a copy of its folder that goes away."""
    place = Path(tempfile.mkdtemp(prefix="sonde-field-"))
    try:
        yield copied(name, place), place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def scanned(subject: Subject, place: Path, flags: Sequence[str], seconds: float) -> dict[str, Any]:
    """Scan a folder and return the screen, the report's findings and its figure."""
    words = ["scan", subject.model, subject.data, *flags, "-o", "report.json"]
    outcome = command(words, place, seconds)
    path = place / "report.json"
    report = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {
        "outcome": outcome.verdict,
        "seconds": round(outcome.seconds, 1),
        "screen": outcome.screen,
        "errors": outcome.errors[-1500:],
        "findings": report.get("findings", []),
        "figure": (report.get("answers") or {}).get("value"),
        "n_rows": (report.get("answers") or {}).get("n_rows"),
    }


def tried(fault: Fault, seconds: float = SECONDS) -> dict[str, Any]:
    """Plant a fault, scan, judge."""
    with copy_of(fault.subject) as (subject, place):
        flags = fault.plant(place)
        flags = list(subject.flags if flags is None else flags)
        try:
            true: float | str | None = figure(subject, plain(subject, place, flags), flags)
        except Exception as error:  # a fault may stop plain code too
            true = type(error).__name__
        made = scanned(subject, place, flags, seconds)
    return made | {"plain": true, "healthy": subject.figure, **judged(fault, made)}


def judged(fault: Fault, made: dict[str, Any]) -> dict[str, Any]:
    """Return verdict and stated cause of a kept result; patterns may have changed since."""
    report = said(made["screen"], made)
    return {
        "verdict": made["outcome"] or verdict(fault, report),
        "cause": report.cause,
        "fix": report.fix,
    }
