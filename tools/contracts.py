"""Contracts of ours for import-linter: imports without circles, and studies that use public names.

``pyproject.toml`` lists them below ``[tool.importlinter]``, beside the order of the rooms.
"""

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.application import contract_utils
from importlinter.application.contract_utils import AlertLevel

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sonde"
STUDIES = ROOT / "packages" / "sonde-studies" / "src" / "sonde_studies"


class NoCircles(Contract):
    """No module imports another one that imports it again, over any number of modules.

    Options
    -------
    ignore_imports : set of str
        Imports that do not count, ``importing -> imported``: those for types alone.
    """

    ignore_imports = fields.SetField(subfield=fields.ImportExpressionField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Return the first circle that is found."""
        removal = contract_utils.remove_ignored_imports_and_report(
            graph=graph,
            ignore_imports=self.ignore_imports,  # type: ignore[arg-type]
            unmatched_alerting=AlertLevel.ERROR,
        )
        found = circle({m: graph.find_modules_directly_imported_by(m) for m in graph.modules})
        return ContractCheck(
            kept=not found, warnings=list(removal.warnings), metadata={"circle": " -> ".join(found)}
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the circle."""
        output.print_error(check.metadata["circle"])


class PublicNames(Contract):
    """The studies take what ``sonde`` or a room of it names in ``__all__``, and nothing else."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Return every name that the studies take from inside of sonde."""
        wrong = deep_imports()
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each name."""
        for line in check.metadata["wrong"]:
            output.print_error(line)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of imports: each module imports the next, and the last is the first again.

    Examples
    --------
    >>> circle({"a": {"b"}, "b": {"a"}, "c": {"a"}})
    ['a', 'b', 'a']
    """
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def deep_imports(studies: Path = STUDIES, package: Path = PACKAGE) -> list[str]:
    """Return one line for each name that the studies take from inside of sonde."""
    public, wrong = exports(package), []
    for path in sorted(studies.rglob("*.py")):
        place = path.relative_to(studies.parent.parent)
        found = not_public(path, public)
        wrong += [f"{place}:{line}: {name} is not public" for line, name in found]
    return wrong


def not_public(path: Path, public: Mapping[str, frozenset[str]]) -> list[tuple[int, str]]:
    """Return the line and the full name of what is used of sonde and is not exported."""
    used = list(imported(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and (home := ast.unparse(node.value)) in public:
            used.append((node.lineno, f"{home}.{node.attr}"))
    homes = ((line, name, *name.rpartition(".")[::2]) for line, name in used)
    return [
        (i, n) for i, n, home, last in homes if n not in public and last not in public.get(home, ())
    ]


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Return line and full name of every import of sonde in a file."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [above + alias.name for alias in node.names]
            found += [(node.lineno, name) for name in names if f"{name}.".startswith("sonde.")]
    return found


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
