"""Peak memory of a piece of work, in a process of its own.

``VmHWM`` belongs to the process alone; ``ru_maxrss`` would begin at what the parent held when it
started the child. With toy sizes a child is forked, which spares it the imports.
"""

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MIB = 2**20
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""glibc gives blocks of a MiB and more back at once, where else it keeps holes by chance."""
LIMIT_SECONDS = 3600


def run_child(
    target: str, python: str | Path = sys.executable, *, steady: bool = False, **options: Any
) -> Any:
    """Return what ``module:function`` gives for these options in a fresh process.

    Parameters
    ----------
    target : str
    python : path
        Interpreter.
    steady : bool, default=False
        Whether peak memory is what is held, without the holes that the allocator keeps: these
        differ between two equal runs by more than a tenth. Slower.
    **options
        JSON.
    """
    if _forks and str(python) == sys.executable:
        return _forked(target, options)
    command = [str(python), "-m", "benchmarks.child", target, json.dumps(options)]
    environment = os.environ | ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"}
    environment |= STEADY if steady else {}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ChildError(f"{target}: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


class ChildError(RuntimeError):
    """A child process failed; its last line is the message."""


_forks = False


def fork_children() -> None:
    """Fork from now on instead of starting Python anew: figures of memory mean nothing then."""
    global _forks
    _forks = True


def _forked(target: str, options: dict[str, Any]) -> Any:
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        try:
            return json.loads(pool.submit(_answer, target, json.dumps(options)).result())
        except Exception as error:
            raise ChildError(f"{target}: {type(error).__name__}: {error}") from error


def _answer(target: str, options: str) -> str:
    """Return what a function gives for options, both as JSON."""
    module, _, name = target.partition(":")
    return json.dumps(getattr(importlib.import_module(module), name)(**json.loads(options)))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def added_peak(work: Callable[[], Any]) -> float:
    """Return by how many MiB a piece of work raised the resident memory at most.

    What was freed before goes back to the system first, so that it is not there to be used again.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = work()
    peak = resident("VmHWM") - before
    del kept
    return peak


def resident(field: str = "VmHWM") -> float:
    """Return a field of this process's memory in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise ChildError(f"no {field} in /proc/self/status")


def main() -> None:
    """Run one function and print its answer as the last line."""
    import torch

    torch.set_num_threads(1)
    print(_answer(*sys.argv[1:]))


if __name__ == "__main__":
    main()
