"""Print code lines per room, methods per family and machinery lines per method, now and before.

    python tools/count_lines.py [REVISION]

Beside them the same at REVISION, by default the last tag. A code line is one that is neither blank
nor comment nor docstring. A method is an exported class of a family; a room is a folder.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("measure", "detect", "explain", "edit", "compress", "train", "layers")
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


def methods(text: str) -> int:
    """Return how many classes the ``__all__`` of a family names; functions are in small letters.

    Examples
    --------
    >>> methods("__all__ = ['CKA', 'cka']")
    1
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sum(1 for name in ast.literal_eval(node.value) if not name[0].islower())
    return 0


def counts(files: Mapping[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Return code lines of each room, and methods of each family, of files by their paths."""
    lines: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for path, text in files.items():
        package, room, *_ = (*path.rpartition("src/")[2].split("/"), "")
        room = package if package in STUDIES else room.removesuffix(".py")
        lines[room] += code_lines(text)
        if room in FAMILIES and path.endswith(f"{room}/__init__.py"):
            found[room] = methods(text)
    return lines, found


def _now() -> dict[str, str]:
    found = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in found}


def _git(*words: str) -> str:
    asked = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return asked.stdout if asked.returncode == 0 else ""


def _before(revision: str) -> dict[str, str]:
    paths = _git("ls-tree", "-r", "--name-only", revision, *FOLDERS).split()
    return {p: _git("show", f"{revision}:{p}") for p in paths if p.endswith(".py")}


def table(now: Mapping[str, str], before: Mapping[str, str] | None) -> list[str]:
    """Return the lines that are printed."""
    lines, found = counts(now)
    old_lines, old_found = counts(before) if before else (Counter[str](), Counter[str]())

    def line(name: str, value: float, was: float, unit: str) -> str:
        return f"{name:<14}{value:>8,.0f} {unit}" + (f"  (was {was:,.0f})" if before else "")

    def machinery(of: Counter[str]) -> int:
        return sum(n for room, n in of.items() if room not in (*FAMILIES, *STUDIES))

    rooms = sorted(lines | old_lines, key=lambda r: -lines[r])
    out = [line(room, lines[room], old_lines[room], "code lines") for room in rooms]
    out += [line(f, found[f], old_found[f], "methods") for f in FAMILIES if found[f] + old_found[f]]
    each = [machinery(a) / max(1, b.total()) for a, b in ((lines, found), (old_lines, old_found))]
    out.append(line("machinery", machinery(lines), machinery(old_lines), "code lines"))
    out.append(line("for a method", each[0], each[1], "lines of machinery"))
    return out


def main() -> int:
    """Print the counts now, and beside them those of a revision."""
    revision = (sys.argv[1:] or _git("describe", "--tags", "--abbrev=0").split() or [""])[0]
    before = _before(revision) if revision else None
    if revision and not before:
        sys.stderr.write(f"count_lines: no revision {revision!r} with a folder src.\n")
        return 2
    print("\n".join(table(_now(), before)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
