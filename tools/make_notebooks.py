"""Make notebooks of how-to pages: their text and their code, run, with what each cell shows.

python tools/make_notebooks.py docs/howto/route_inputs.md examples/images.ipynb ...

``examples/NAME.ipynb`` is written for each page. Blocks of output and links to other pages are left
out; a test compares code and page. A notebook that is no page is run again and keeps its cells.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(text: str) -> list[tuple[str, str]]:
    """Return the kind and the source of each cell of a page."""
    found, end = list[tuple[str, str]](), 0
    for block in BLOCK.finditer(text):
        if block[1] not in ("python", "output"):
            continue
        found.append(("markdown", LINK.sub(r"\1", text[end : block.start()]).strip()))
        found += [("code", block[2].rstrip())] if block[1] == "python" else []
        end = block.end()
    found.append(("markdown", LINK.sub(r"\1", text[end:]).strip()))
    return [(kind, source) for kind, source in found if source]


def sources_of(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the source of each cell of a page or of a notebook."""
    if path.suffix != ".ipynb":
        return cells_of(path.read_text("utf-8"))
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def outputs_of(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run a cell and return what it prints, and what its last line shows."""
    tree, said = ast.parse(source), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, "cell", "exec"), names)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    lines = said.getvalue().splitlines(keepends=True)
    found: list[dict[str, Any]] = []
    if lines:
        found.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        told = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            told["text/html"] = value._repr_html_()
        if hasattr(value, "_repr_png_"):
            told["image/png"] = base64.b64encode(value._repr_png_()).decode()
        if hasattr(value, "_repr_mimebundle_"):
            told = value._repr_mimebundle_()
        found.append({
            "output_type": "execute_result", "execution_count": number, "metadata": {},
            "data": told,
        })  # fmt: skip
    return found


def notebook_of(page: Path) -> dict[str, Any]:
    """Return the notebook of a page, run."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, number = list[dict[str, Any]](), 0
    for i, (kind, source) in enumerate(sources_of(page)):
        cell: dict[str, Any] = {
            "cell_type": kind, "id": f"cell-{i}", "metadata": {},
            "source": source.splitlines(keepends=True),
        }  # fmt: skip
        if kind == "code":
            number += 1
            made = outputs_of(source, names, number)
            cell |= {"execution_count": number, "outputs": made}
        cells.append(cell)
    is_page = page.suffix == ".md"
    from_page = {"sonde": {"page": page.resolve().relative_to(ROOT).as_posix()}} if is_page else {}
    metadata = KERNEL | from_page if is_page else json.loads(page.read_text("utf-8"))["metadata"]
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main(pages: list[str]) -> int:
    """Write a notebook for each page; 2 without one."""
    if not pages:
        sys.stderr.write("usage: python tools/make_notebooks.py PAGE ...\n")
        return 2
    for word in pages:
        path = ROOT / "examples" / f"{Path(word).stem}.ipynb"
        page = Path(word).resolve()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            sys.path.insert(0, folder)  # a notebook may write modules, as a kernel finds them
            made = notebook_of(page)
            sys.path.remove(folder)
        path.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
