"""The fault bench damages what every function of sonde writes: a new one must name its kind."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.faults import kinds

SOURCE = Path(__file__).parents[2] / "src" / "sonde"
WRITERS = {
    "atomic_write", "atomic_file", "sealed_file", "write_state", "open_new", "write_dataset",
    "SoftFileLock",
}  # fmt: skip
BESIDE = {"write_text", "write_bytes", "mkstemp", "NamedTemporaryFile", "savez", "tofile"}
MADE_OF_THEM = "files.durable:atomic_file"


def calls(source: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield where a call stands, as ``package.module:Class.function``, and what is called."""
    for path in sorted(source.rglob("*.py")):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
        waiting: list[tuple[ast.AST, str]] = [(ast.parse(path.read_text()), "")]
        while waiting:
            node, within = waiting.pop()
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                within = f"{within}.{node.name}" if within else node.name
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                yield f"{module}:{within}", name, node
            waiting += [(child, within) for child in ast.iter_child_nodes(node)]


def writing(source: Path) -> set[str]:
    """Return the functions that write files through the one writer."""
    return {where for where, name, _ in calls(source) if name in WRITERS}


def beside(source: Path) -> set[str]:
    """Return the functions that write files in another way."""
    return {w for w, name, call in calls(source) if name in BESIDE or _opens_to_write(name, call)}


def _opens_to_write(name: str, call: ast.Call) -> bool:
    given = [*call.args, *(k.value for k in call.keywords)]
    modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return name == "open" and any(set(m) & set("wax+") and set(m) <= set("rwaxbt+") for m in modes)


@pytest.mark.slow
def test_every_function_that_writes_is_on_the_list_of_kinds():
    assert writing(SOURCE) == kinds.writers() | {MADE_OF_THEM}


@pytest.mark.slow
def test_nothing_writes_in_another_way():
    into_an_archive = {"store.exporting.arrays:write_npz"}
    into_a_new_folder = {"testing.rewrite_laws:_saved", "weights.factory_folder:write_folder"}
    a_line_more_of_a_log = {"run.compressing.search:TrialFile.add"}
    a_temporary_file = {"data.spooled:Spooled.__init__"}
    a_ring_that_is_tested_when_opened = {"serving.remembered:AnswerRing.__init__"}
    known = into_an_archive | into_a_new_folder | a_line_more_of_a_log | a_temporary_file
    assert beside(SOURCE) == known | a_ring_that_is_tested_when_opened


def test_a_new_writer_is_seen(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "new.py").write_text(
        "class New:\n    def save(self):\n        files.atomic_write(1, b'')\n"
        "def log(path):\n    path.open('a')\n    open(path)\n"
        "def note(path):\n    path.write_text('')\n"
        "def wide(path):\n    path.open('rb')\n"
    )
    assert writing(tmp_path) == {"a.new:New.save"}
    assert beside(tmp_path) == {"a.new:log", "a.new:note"}


def test_no_kind_is_both_tried_and_not():
    every = (kinds.FINISHED, kinds.OF_A_RUN, kinds.OF_A_STORE, kinds.OF_A_SERVER)
    tried = {part.writer for of in every for part in of.values()}
    assert not tried & kinds.NOT_TRIED.keys()
