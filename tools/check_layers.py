"""Check that imports inside ``sonde`` go only downward, also where they stand inside a function.

The rooms, from the bottom: core; files; engine; stats; tap, data, store, metrics, alarms; weights;
layers; the families, which never import one another; run; findings, serving; report; cli;
``__main__``.
The rooms of tap and of run have an order too, and no modules import one another in a circle, but
for types alone.

The studies are users: ``sonde_studies`` takes what ``sonde`` or a room of it names in ``__all__``,
and nothing of sonde imports it.
"""

import ast
import sys
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from sonde.run.instruments.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sonde"
STUDIES = ROOT / "packages" / "sonde-studies" / "src" / "sonde_studies"
OURS = ("sonde.", "sonde_studies.")
ORDERS: dict[str, list[tuple[str, ...]]] = {
    "sonde": [
        ("core",),
        ("files",),
        ("engine",),
        ("stats",),
        ("tap", "data", "store", "metrics", "alarms"),
        ("weights",),
        ("layers",),
        tuple(family for family in FAMILIES if family != "layers"),
        ("run",),
        ("findings", "serving"),
        ("report",),
        ("cli", "testing"),
        ("__main__", "_opening", "_packed_models", "_opened_folders"),
    ],
    "sonde.tap": [
        ("hooks",),
        ("attention",),
        ("model",),
        ("rows",),
        ("generating", "hand", "decoding", "cache", "tokens", "training"),
        ("streams", "forwards"),
        ("gradients",),
    ],
    "sonde.run": [
        ("instruments", "workers"),
        ("reading", "passes"),
        ("bundles",),
        ("fitting",),
        ("scoring",),
        ("calibrating",),
        (
            "evaluating",
            "watching",
            "comparing",
            "training",
            "changing",
            "explaining",
            "tracing",
            "coding",
            "compressing",
        ),
        ("verifying", "fine_tuning"),
    ],
}
LEVELS = {
    package: {room: level for level, rooms in enumerate(order) for room in rooms}
    for package, order in ORDERS.items()
}

BUILT_ON_IT = {
    ("sonde.core.instrument", "sonde.engine.folding"),
    ("sonde.core.stream", "sonde.engine.array_stream"),
}
"""The two doors upward: a base class makes something of plain arrays when it is asked to."""


@cache
def imported(path: Path) -> list[tuple[int, str, bool]]:
    """Return line and full name of every import of ours in a file, and whether it is for types.

    The name of a relative import is a dot.
    """
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    checked = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for_types = {inner for n in checked for part in n.body for inner in ast.walk(part)}
    found: list[tuple[int, str, bool]] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, ".", node in for_types))
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [above + alias.name for alias in node.names]
        found += [(node.lineno, n, node in for_types) for n in names if n.startswith(OURS)]
    return found


def rooms(module: str) -> dict[str, str]:
    """Return the room that a module is in, for each package with an order that it lies in."""
    inside = (package for package in LEVELS if module.startswith(f"{package}."))
    return {package: module.removeprefix(f"{package}.").partition(".")[0] for package in inside}


def fault(module: str, target: str) -> str | None:
    """Return what is wrong with an import of ``target`` in ``module``."""
    if (module, target.rpartition(".")[0]) in BUILT_ON_IT:
        return None
    if target == ".":
        return "write imports in full"
    mine, its = rooms(module), rooms(target)
    if target.partition(".")[0] == STUDIES.name:
        return f"{mine['sonde']} may not import the studies"
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
        reasons = ((line, fault(module, target)) for line, target, _ in imported(path))
        wrong += [f"{place}:{line}: {reason}" for line, reason in reasons if reason]
    return wrong


def exports(package: Path = PACKAGE) -> dict[str, frozenset[str]]:
    """Return what ``__all__`` names, of a package and of those directly below it that have one."""
    found: dict[str, frozenset[str]] = {}
    for path in (package / "__init__.py", *sorted(package.glob("*/__init__.py"))):
        name = ".".join(path.parent.relative_to(package.parent).parts)
        lazy = path.with_suffix(".pyi")
        for node in ast.parse((lazy if lazy.exists() else path).read_text(encoding="utf-8")).body:
            if lazy.exists() and isinstance(node, ast.ImportFrom):
                found[name] = found.get(name, frozenset()) | {str(a.asname) for a in node.names}
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[name] = frozenset(ast.literal_eval(node.value))
    return found


def not_public(path: Path, public: Mapping[str, frozenset[str]]) -> list[tuple[int, str]]:
    """Return the line and the full name of what is used of sonde and is not exported."""
    used = [(line, name) for line, name, _ in imported(path) if not name.startswith(OURS[1])]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and (home := ast.unparse(node.value)) in public:
            used.append((node.lineno, f"{home}.{node.attr}"))
    homes = ((line, name, *name.rpartition(".")[::2]) for line, name in used)
    return [
        (i, n) for i, n, home, last in homes if n not in public and last not in public.get(home, ())
    ]


def deep_imports(studies: Path = STUDIES, package: Path = PACKAGE) -> list[str]:
    """Return one line for each name that the studies take from inside of sonde."""
    public, wrong = exports(package), []
    for path in sorted(studies.rglob("*.py")):
        place = path.relative_to(studies.parent.parent)
        found = not_public(path, public)
        wrong += [f"{place}:{line}: {name} is not public" for line, name in found]
    return wrong


def circle(package: Path = PACKAGE) -> list[str]:
    """Return a circle of imports: each module imports the next, and the last is the first again."""
    modules: dict[str, Path] = {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        modules[module.removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name, for_types in imported(path) if not for_types}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if (module, name) not in BUILT_ON_IT}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def main() -> int:
    """Print what is wrong and return the exit code."""
    wrong = violations() + deep_imports()
    for package in (PACKAGE, STUDIES):
        if found := circle(package):
            wrong.append(f"a circle of imports: {' -> '.join(found)}")
    print("\n".join(wrong) or "imports go downward")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
