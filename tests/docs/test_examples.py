"""The notebooks of ``examples`` run from first cell to last, each in a folder of its own.

Notebooks of pages hold the code of their page, which runs with the docs.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HELD = {path: json.loads(path.read_text("utf-8")) for path in (ROOT / "examples").glob("*.ipynb")}
OF_PAGES = sorted(path for path, held in HELD.items() if "sonde" in held["metadata"])
WITH_MODELS = sorted(path for path, held in HELD.items() if "needs" in held["metadata"])
"""Notebooks of models that tests do not fetch."""
NOTEBOOKS = sorted(set(HELD) - set(OF_PAGES) - set(WITH_MODELS))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shown(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_holds(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as a kernel does
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in HELD[path]["cells"]:
        if cell["cell_type"] != "code":
            continue
        value = shown("".join(cell["source"]), names)
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert (value is not None) == bool(kinds), "run the notebook anew: its outputs are old"


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", WITH_MODELS, ids=lambda path: path.stem)
def test_a_notebook_that_tests_do_not_run_was_run_whole(path) -> None:
    cells = [cell for cell in HELD[path]["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        last = ast.parse("".join(cell["source"])).body[-1]
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        is_value = isinstance(last, ast.Expr) and "print(" not in ast.unparse(last)
        assert bool(kinds) == is_value, "run tools/make_notebooks.py on it"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", OF_PAGES, ids=lambda path: path.stem)
def test_a_notebook_of_a_page_holds_its_code_and_a_picture(path) -> None:
    held = HELD[path]
    page = (ROOT / held["metadata"]["sonde"]["page"]).read_text("utf-8")
    cells = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    ours = ["".join(cell["source"]) for cell in cells]
    assert ours == [block.rstrip() for block in BLOCK.findall(page)], "run tools/make_notebooks.py"
    kinds = {kind for c in cells for output in c["outputs"] for kind in output.get("data", {})}
    assert "application/vnd.vegalite.v5+json" in kinds
