"""Time of ``import sonde`` beyond ``import torch``, and of commands that read no state."""

import statistics
import subprocess
import sys
import tempfile

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
COMMANDS = ("--help", "methods", "scan --nosuch")
COMMAND_BUDGET = 0.4
COMMAND = """
import sys, time
began = time.process_time()
from sonde.cli import main
main({words!r})
sys.stdout.write(f"\\n{{time.process_time() - began}} {{'torch' in sys.modules}}")
"""
SCAN_BUDGET = 3.0
SCAN = """
import sys, time
import torch, transformers.modeling_utils
from transformers import ViTForImageClassification
began = time.process_time()
from sonde.cli import main
main("scan sonde:digits sonde:digits/test --limit 40 --quiet -o {page}".split())
sys.stdout.write(f"\\n{{time.process_time() - began}} True")
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
    return rows + _commands(size)


def _commands(size: Size) -> list[Row]:
    """Process time of commands beyond the interpreter, and of a small scan beyond its imports."""
    with tempfile.TemporaryDirectory() as folder:
        scan = SCAN.format(page=f"{folder}/page.html")
        asked = [(f"sonde {w}", COMMAND.format(words=w.split()), COMMAND_BUDGET) for w in COMMANDS]
        asked.append(
            ("scan of 40 digits, beyond torch and transformers' own model class", scan, SCAN_BUDGET)
        )
        rows = []
        for what, program, budget in asked:
            taken = [_timed(program) for _ in range(size.pick(3, 1))]
            value = statistics.median(float(seconds) for seconds, _ in taken)
            note = f"{value:.3f} s; torch imported: {taken[0][1]}"
            rows.append(
                Row("import", what, value, unit="s", budget=budget, rounds=len(taken), note=note)
            )
    return rows


def _import(more: str) -> tuple[float, str]:
    return _timed(PROGRAM.format(more=more, names=OPTIONAL + HEAVY))


def _timed(program: str) -> tuple[float, str]:
    """Return the two words of the last line that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**ONE_THREAD, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, _, found = done.stdout.strip().splitlines()[-1].partition(" ")
    return float(seconds), found
