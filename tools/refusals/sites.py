"""Statements that raise one of sonde's errors, found in the syntax trees of the code."""

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src/sonde", "packages/sonde-studies/src/sonde_studies")
ERRORS = ("InputError", "SiteError", "ShapeError", "StateError", "StoreError", "CalibrationError")


@dataclass(frozen=True)
class Site:
    """A raise statement: its file, function, number in the function, and lines."""

    path: str
    function: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name that does not change with the lines above the statement."""
        return f"{self.path}:{self.function}:{self.number}"


def raise_sites(root: Path = ROOT) -> list[Site]:
    """Return every raise statement of one of ``ERRORS``."""
    sites = list[Site]()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            _collect(ast.parse(path.read_text(encoding="utf-8")), name, "", {}, sites)
    return sites


def draw_sites(sites: list[Site], n: int, seed: int) -> list[Site]:
    """Return ``n`` sites with the smallest hashes of their names: edits elsewhere keep the draw."""
    order = sorted(sites, key=lambda s: hashlib.blake2b(f"{seed} {s.name}".encode()).digest())
    return sorted(order[:n], key=lambda s: s.name)


def _collect(
    node: ast.AST, path: str, function: str, counts: dict[str, int], sites: list[Site]
) -> None:
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".removeprefix(".")
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            kind = child.exc.func
            if isinstance(kind, ast.Name) and kind.id in ERRORS:
                number = counts[function] = counts.get(function, 0) + 1
                last = child.end_lineno or child.lineno
                sites.append(Site(path, function, number, child.lineno, last))
        _collect(child, path, inner, counts, sites)
