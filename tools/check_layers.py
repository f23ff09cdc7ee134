"""Check that imports inside ``sonde`` go only downward, also where they stand inside a function.

The rooms, from the bottom: core; stats; tap, data, store, metrics, alarms; the families, which
never import one another; run; findings; report; cli; ``__main__``. The rooms of tap
and of run have an order too, and no modules import one another in a circle, but for types alone.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "sonde"
ORDERS: dict[str, list[tuple[str, ...]]] = {
    "sonde": [
        ("core",),
        ("stats",),
        ("tap", "data", "store", "metrics", "alarms"),
        ("measure", "detect"),
        ("run",),
        ("findings",),
        ("report",),
        ("cli",),
        ("__main__",),
    ],
    "sonde.tap": [
        ("hooks",),
        ("model",),
        ("rows",),
        ("generating", "hand"),
        ("reading", "watching"),
    ],
    "sonde.run": [
        ("instruments", "workers"),
        ("reading", "passes"),
        ("bundles",),
        ("fitting",),
        ("scoring",),
        ("calibrating",),
        ("evaluating", "watching", "comparing", "training"),
        ("verifying",),
    ],
}
LEVELS = {
    package: {room: level for level, rooms in enumerate(order) for room in rooms}
    for package, order in ORDERS.items()
}

BUILT_ON_IT = {
    ("sonde.core.instrument", "sonde.core.folding"),
    ("sonde.core.stream", "sonde.core.array_stream"),
}
"""Where a base class makes something of plain arrays, by a module that is built on the class."""


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the line and the full name of every import of sonde; of a relative one, a dot."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "."))
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [above + alias.name for alias in node.names]
        found += [(node.lineno, name) for name in names if name.startswith("sonde.")]
    return found


def rooms(module: str) -> dict[str, str]:
    """Return the room that a module is in, for each package with an order that it lies in."""
    inside = (package for package in LEVELS if module.startswith(f"{package}."))
    return {package: module.removeprefix(f"{package}.").partition(".")[0] for package in inside}


def fault(module: str, target: str) -> str | None:
    """Return what is wrong with an import of ``target`` in ``module``."""
    if target == ".":
        return "write imports in full"
    mine, its = rooms(module), rooms(target)
    for package, room in mine.items():
        other, levels = its.get(package, room), LEVELS[package]
        if other not in (room, "__version__"):
            downward = other in levels and levels[other] < levels[room]
            return None if downward else f"{room} may not import {other}"
    return None


def violations(package: Path = PACKAGE) -> list[str]:
    """Return one line for each import that goes upward or sideways, or room that has no place."""
    wrong: list[str] = []
    for path in sorted(package.rglob("*.py")):
        place = str(path.relative_to(package.parent.parent))
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        lost = [f"{p}.{room}" for p, room in rooms(module).items() if room not in LEVELS[p]]
        if lost:
            wrong.append(f"{place}: {lost[0]} has no place in the order")
            continue
        found = imported(ast.parse(path.read_text(encoding="utf-8")))
        reasons = ((line, fault(module, target)) for line, target in found)
        wrong += [f"{place}:{line}: {reason}" for line, reason in reasons if reason]
    return wrong


def circle(package: Path = PACKAGE) -> list[str]:
    """Return modules of which each imports the next, and the last is the first again."""
    trees: dict[str, ast.AST] = {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        trees[module.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        names = {name for _, name in imported(tree)}
        found = {name if name in trees else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if (module, name) not in BUILT_ON_IT}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def main() -> int:
    """Print what is wrong and return the exit code."""
    wrong = violations()
    if found := circle():
        wrong.append(f"a circle of imports: {' -> '.join(found)}")
    print("\n".join(wrong) or "imports go downward")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
