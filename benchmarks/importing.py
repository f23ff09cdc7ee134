"""Time of ``import sonde`` beyond ``import torch``."""

import statistics
import subprocess
import sys

from benchmarks.child import ONE_THREAD, ROOT
from benchmarks.rows import Row
from benchmarks.size import Size

BUDGET = 0.3
OPTIONAL = ("datasets", "accelerate", "ray", "lance", "pandas", "matplotlib", "torchvision")
HEAVY = ("transformers", "sklearn", "scipy", "pyarrow", "altair", "vl_convert", "PIL", "rich")
PROGRAM = """
import sys, time
import torch
before = set(sys.modules)
began = time.process_time()
import sonde
{more}
taken = time.process_time() - began
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(taken, " ".join(sorted(new & set({names!r}))) or "none")
"""
USES = {
    "import sonde": "",
    "import sonde and its detectors and measures": "sonde.detect, sonde.measure",
    "import sonde and sonde.scan": "sonde.scan",
}


def import_time(size: Size) -> list[Row]:
    """Process time of the import, and which heavy packages came with it."""
    rows = []
    for what, more in USES.items():
        taken, found = [], "none"
        for _ in range(1 if more else size.pick(3, 1)):
            seconds, found = _import(more)
            taken.append(seconds)
        is_promise = not more
        optional = [name for name in found.split() if name in OPTIONAL]
        value = statistics.median(taken)
        rows.append(
            Row(
                "import",
                f"{what}, beyond torch",
                float("inf") if is_promise and optional else value,
                unit="s",
                budget=BUDGET if is_promise else None,
                rounds=len(taken),
                note=f"{value:.3f} s; heavy packages imported: {found}",
            )
        )
    return rows


def _import(more: str) -> tuple[float, str]:
    program = PROGRAM.format(more=more, names=OPTIONAL + HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**ONE_THREAD, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, _, found = done.stdout.strip().partition(" ")
    return float(seconds), found
