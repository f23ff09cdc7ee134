"""Check that imports inside ``sonde`` go only downward, also where they stand inside a function.

The rooms, from the bottom: core; stats; tap, data, store, metrics, alarms; the families, which
never import one another; run; findings; report; studies; cli.
"""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "sonde"
LEVELS: list[tuple[str, ...]] = [
    ("core",),
    ("stats",),
    ("tap", "data", "store", "metrics", "alarms"),
    ("measure", "detect"),
    ("run",),
    ("findings",),
    ("report",),
    ("studies",),
    ("cli",),
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the line and the room of every import of sonde."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "relative"))
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sonde" and len(parts) > 1:
                found.append((node.lineno, parts[1]))
    return found


def violations(package: Path = PACKAGE) -> list[str]:
    """Return one line for each import that goes upward or sideways."""
    wrong: list[str] = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0]
        if room not in LEVEL:
            continue
        for line, target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if target == room:
                continue
            place = f"{path.relative_to(package.parent.parent)}:{line}"
            if target == "relative":
                wrong.append(f"{place}: write imports in full")
            elif target in LEVEL and LEVEL[target] >= LEVEL[room]:
                wrong.append(f"{place}: {room} may not import {target}")
            elif target not in LEVEL and target != "__version__":
                wrong.append(f"{place}: {room} may not import sonde.{target}")
    return wrong


def main() -> int:
    """Print what is wrong and return the exit code."""
    wrong = violations()
    print("\n".join(wrong) or "imports go downward")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
