"""Count the value tests and the independent sources that they name in ``@pytest.mark.truth``.

Every method of a family and every statistic must have at least one such test.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("stats", "measure", "detect", "edit", "explain", "compress")


def truths(path: Path) -> list[str]:
    """Return the sources that the tests of one file name."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "truth" and node.args and isinstance(node.args[0], ast.Constant):
            found.append(str(node.args[0].value))
    return found


def main() -> int:
    """Print the counts and return the exit code."""
    total: Counter[str] = Counter()
    without: list[str] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = truths(path)
        total.update(found)
        if not found and path.parent.name in FOLDERS and path.stem != "test_laws":
            without.append(path.relative_to(ROOT).as_posix())
    print(f"{sum(total.values())} value tests name {len(total)} independent sources")
    for path in without:
        print(f"no independent source: {path}")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
