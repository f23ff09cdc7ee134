"""Commands of sonde in processes of their own, which can be watched, limited and killed.

Linux: processes are watched through ``/proc``.
"""

import contextlib
import importlib
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

SONDE = ("-m", "sonde")
TICK = 1 / os.sysconf("SC_CLK_TCK")
POLL_SECONDS = 0.002
LIMIT_SECONDS = 600.0
WORKER = b"multiprocessing.spawn"
HEAVY = (
    "huggingface_hub.hf_api",
    "pandas",  # pyarrow imports it where it is
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.json",
    "scipy.linalg",
    "sonde.cli._compared",
    "sonde.cli._dictionaries",
    "sonde.cli._fitted",
    "sonde.cli._scored",
    "sonde.cli.commands",
    "sonde.cli.drift",
    "sonde.cli.evaluate",
    "sonde.cli.export",
    "sonde.cli.fit",
    "sonde.cli.merge",
    "sonde.cli.read",
    "sonde.cli.scan",
    "sonde.cli.score",
    "sonde.cli.verify",
    "sonde.data",
    "sonde.findings",
    "sonde.report.drift",
    "sonde.report.evaluate",
    "sonde.report.verifying",
    "sonde.run.fitting.merge",
    "sonde.run.comparing.drift",
    "sonde.run.scoring.evaluate",
    "sonde.run.fitting.fit",
    "sonde.run.passes.storing",
    "sonde.run.scoring.score",
    "sonde.run.scoring.tables",
    "sonde.run.comparing.verify_run",
    "sonde.run.comparing.verify_state",
    "sonde.store",
    "sonde.tap",
    "tyro.constructors",
    "typeguard",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended; a negative code is the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def is_clear(self) -> bool:
        """Whether it ended with 2, one line of error as its last, and no traceback."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        traced = "Traceback" in self.err
        return self.code == 2 and len(errors) == 1 and lines[-1] == errors[0] and not traced

    @property
    def said(self) -> str:
        """Return the last line on stderr."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"exit {self.code}: {lines[-1] if lines else 'nothing said'}"


@dataclass(frozen=True)
class Commands:
    """Starts commands of sonde in a folder.

    Parameters
    ----------
    source : Path
        A folder on the path of Python, where the model is.
    program : sequence of str
        What runs sonde; a broken one shows that the bench sees it.
    forked : bool
        Fork instead of starting Python anew: the same command without seconds of imports.
    """

    source: Path
    program: Sequence[str] = SONDE
    forked: bool = False

    def start(self, words: Sequence[str], cwd: Path, most_bytes: int | None = None) -> "Running":
        """Start a command; files that it writes end at ``most_bytes`` with an error."""
        out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  closed by Running
        if self.forked:
            pid = self._fork(words, cwd, out.fileno(), err.fileno(), most_bytes)
        else:
            pid = self._start(words, cwd, out.fileno(), err.fileno(), most_bytes)
        return Running(pid, out, err)

    def run(self, words: Sequence[str], cwd: Path, most_bytes: int | None = None) -> Ended:
        """Run a command to its end."""
        with self.start(words, cwd, most_bytes) as running:
            return running.end()

    def _start(
        self, words: Sequence[str], cwd: Path, out: int, err: int, most_bytes: int | None
    ) -> int:
        path = os.pathsep.join([str(self.source), *_given("PYTHONPATH")])
        limit = None if most_bytes is None else lambda: _limit(most_bytes)
        process = subprocess.Popen(
            [sys.executable, "-B", *self.program, *words],
            cwd=cwd,
            env={**os.environ, **QUIET, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=limit,
        )
        process.returncode = 0  # waited for here, not there
        return process.pid

    def _fork(
        self, words: Sequence[str], cwd: Path, out: int, err: int, most_bytes: int | None
    ) -> int:
        load()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            os.chdir(cwd)
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.path.insert(0, str(self.source))
            _limit(most_bytes)
            code = self._called(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _called(self, words: Sequence[str]) -> int:
        """Run the program in this process."""
        if self.program == SONDE:
            from sonde.cli.main import main

            return main(list(words))
        sys.argv = [*self.program, *words]
        try:
            runpy.run_path(self.program[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0


QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}


def load() -> None:
    """Import what commands import, so that a forked one need not."""
    from sonde.findings.catalogue import rule_classes
    from sonde.run.instruments.families import FAMILIES

    os.environ.update(QUIET)
    for name in (*HEAVY, *(f"sonde.{family}" for family in FAMILIES)):
        importlib.import_module(name)
    rule_classes()


def _given(name: str) -> list[str]:
    return [os.environ[name]] if os.environ.get(name) else []


def _limit(most_bytes: int | None) -> None:
    if most_bytes is not None:
        sys.dont_write_bytecode = True  # it would be cut off too, and stay so
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


@dataclass
class Running:
    """A command that runs, the leader of its process group."""

    pid: int
    _out: IO[bytes]
    _err: IO[bytes]
    _code: int | None = None
    _members: list[str] = field(default_factory=list)
    _looked: float = 0.0

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    def hold(self) -> None:
        """Stop the leader where it is; it lives, and holds what it holds."""
        if not self.is_over():
            os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        if not self.is_over():
            os.kill(self.pid, signal.SIGCONT)

    def is_over(self) -> bool:
        """Return whether the leader has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def end(self, limit_seconds: float = LIMIT_SECONDS) -> Ended:
        """Wait for the end; a command that takes longer is killed."""
        until = time.monotonic() + limit_seconds
        while not self.is_over():
            if time.monotonic() > until:
                self.kill()
            time.sleep(POLL_SECONDS)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended(self._code if self._code is not None else 1, *texts)

    def kill(self) -> None:
        """Kill the whole group at once, and wait until nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while not self.is_over() or self._alive():
            time.sleep(POLL_SECONDS)

    def workers(self) -> list[int]:
        """Return the living worker processes of the leader."""
        found = []
        for number in self._members:
            facts = _facts(number)
            if facts and facts[0] not in "ZX" and facts[1] == str(self.pid):
                found += [int(number)] if WORKER in _command(number) else []
        return found

    def kill_worker(self, pid: int) -> None:
        """Kill one process of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """Return what the group has worked: a clock that stands still while others do."""
        if time.monotonic() > self._looked + 0.1:
            self._alive()
        return sum(_worked(number) for number in self._members)

    def _alive(self) -> bool:
        """Return whether the group has a living member besides zombies."""
        self._looked = time.monotonic()
        numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        facts = {number: _facts(number) for number in numbers}
        self._members = [n for n, f in facts.items() if f and f[2] == str(self.pid)]
        return any(facts[n][0] not in "ZX" for n in self._members)

    def has_open(self, name: str) -> bool:
        """Return whether the leader has a file of this name open."""
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if link.readlink().name == name:
                        return True
        return False


def _facts(number: str) -> list[str]:
    """Return the state of a process, its parent, its group and so on; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return []


def _command(number: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes()
    return b""


def _worked(number: str) -> float:
    facts = _facts(number)
    return TICK * sum(int(f) for f in facts[11:15])
