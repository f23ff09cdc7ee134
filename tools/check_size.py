"""Warn at function bodies over 45 lines and files over 500; fail at 60 and 800."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_WARNS, FUNCTION_FAILS = 45, 60
FILE_WARNS, FILE_FAILS = 500, 800

EXCEPTIONS: dict[str, str] = {
    # path[:function] -> reason
    "benchmarks/__main__.py:registry": "a list with a line for each benchmark",
}


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, its docstring left out."""
    body = node.body
    if ast.get_docstring(node) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1


def sizes(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Return what is worth a look, and what is too large."""
    warned: list[str] = []
    failed: list[str] = []
    for folder in ("src", "packages", "tests", "tools", "benchmarks", "examples"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            text = path.read_text(encoding="utf-8")
            _sort(name, len(text.splitlines()), FILE_WARNS, FILE_FAILS, warned, failed)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    place = f"{name}:{node.name}"
                    _sort(place, body_lines(node), FUNCTION_WARNS, FUNCTION_FAILS, warned, failed)
    return warned, failed


def _sort(
    place: str, lines: int, warns: int, fails: int, warned: list[str], failed: list[str]
) -> None:
    if place in EXCEPTIONS:
        return
    if lines > fails:
        failed.append(f"{place}: {lines} lines, at most {fails}")
    elif lines > warns:
        warned.append(f"{place}: {lines} lines")


def main() -> int:
    """Print both lists and return the exit code."""
    warned, failed = sizes()
    print(f"{len(warned)} places are worth a look" + "".join(f"\n  {w}" for w in warned))
    print("\n".join(failed) or "nothing is too large")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
