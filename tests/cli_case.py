"""Commands of sonde, run in this process."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import sonde
from sonde.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)

    def error(self) -> str:
        """Return the one line of error, checked to be one."""
        assert self.code == 2, (self.code, self.out, self.err)
        lines = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.err
        return lines[0]


def run_words(*words) -> Ran:
    """Run a command in this process; logs are left to their handlers."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(w) for w in words])
    return Ran(code, out.getvalue(), err.getvalue())


def in_a_new_process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, where nothing is imported yet."""
    source = str(Path(str(sonde.__file__)).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
