"""Print code lines per room, methods per family and machinery lines per method, now and before.

    python tools/count_lines.py [REVISION]

Beside the lines those at REVISION, by default the last tag. A code line is one that is neither
blank nor comment nor docstring. A method is a class that `sonde methods` lists, a room is a folder.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sonde.run.instruments.families import FAMILIES
from sonde.run.instruments.listing import listed

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ("studies", "sonde_studies")
FOLDERS = ("src", "packages")


def code_lines(text: str) -> int:
    r"""Return how many lines hold code.

    Examples
    --------
    >>> code_lines("'''Say.'''\n\nx = 1  # why\n# only\ny = (\n    2\n)\n")
    4
    """
    tree = ast.parse(text)
    silent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for i, s in lines if i not in silent and s.strip()[:1] not in ("", "#"))


def methods() -> Counter[str]:
    """Return how many methods each family has now; functions do not count."""
    return Counter(m.family for m in listed() if m.kind != "function")


def counts(files: Mapping[str, str]) -> Counter[str]:
    """Return the code lines of each room, of files by their paths."""
    lines: Counter[str] = Counter()
    for path, text in files.items():
        package, room, *_ = (*path.rpartition("src/")[2].split("/"), "")
        lines[package if package in STUDIES else room.removesuffix(".py")] += code_lines(text)
    return lines


def _now() -> dict[str, str]:
    found = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in found}


def _git(*words: str) -> str:
    asked = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return asked.stdout if asked.returncode == 0 else ""


def _before(revision: str) -> dict[str, str]:
    paths = _git("ls-tree", "-r", "--name-only", revision, *FOLDERS).split()
    return {p: _git("show", f"{revision}:{p}") for p in paths if p.endswith(".py")}


def table(
    now: Mapping[str, str], before: Mapping[str, str] | None, found: Mapping[str, int]
) -> list[str]:
    """Return the lines that are printed."""
    lines, old = counts(now), counts(before or {})

    def line(name: str, value: float, unit: str, was: float | None = None) -> str:
        return f"{name:<14}{value:>8,.0f} {unit}" + (f"  (was {was:,.0f})" if was else "")

    def machinery(of: Counter[str]) -> int:
        return sum(n for room, n in of.items() if room not in (*FAMILIES, *STUDIES))

    rooms = sorted(lines | old, key=lambda r: -lines[r])
    out = [line(room, lines[room], "code lines", old[room]) for room in rooms]
    out += [line(family, n, "methods") for family, n in found.items()]
    out.append(line("machinery", machinery(lines), "code lines", machinery(old)))
    each = machinery(lines) / max(1, sum(found.values()))
    return [*out, line("for a method", each, "lines of machinery")]


def main() -> int:
    """Print the counts now, and beside them those of a revision."""
    revision = (sys.argv[1:] or _git("describe", "--tags", "--abbrev=0").split() or [""])[0]
    before = _before(revision) if revision else None
    if revision and not before:
        sys.stderr.write(f"count_lines: no revision {revision!r} with a folder src.\n")
        return 2
    print("\n".join(table(_now(), before, methods())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
