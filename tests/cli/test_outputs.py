"""Where commands may write: the same rule for each, told before any work, with nothing changed."""

import shutil
from pathlib import Path

import pytest

from ledger_case import case
from run_case import stream
from sonde.run.passes.ledger import Ledger
from sonde.store import write_store

FILES = {
    "fit": ("fit norms - {place}/rows.npz", "probe.sonde"),
    "calibrate": ("calibrate {place}/probe.sonde - {place}/plain.npz", "probe.sonde"),
    "score": ("score {place}/probe.sonde - {place}/rows.npz", "scores.parquet"),
    "evaluate": ("evaluate {tables}/a.csv {tables}/b.csv --resamples 10", "page.html"),
    "merge": ("merge {place}/probe.sonde {place}/probe.sonde", "both.sonde"),
    "drift": ("drift {place}/probe.sonde {place}/probe.sonde", "page.html"),
    "scan": ("scan - {place}/rows.npz", "report.html"),
    "scan --diff": ("scan --diff {place}/report.json {place}/report.json", "page.html"),
    "export": ("export {acts}", "rows.npz"),
}
FOLDERS = {"read": "read - {place}/plain.npz", "study": "study nac --tiny --seeds 3"}


def content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def acts(tmp_path) -> Path:
    return write_store(stream(60), tmp_path / "acts", unit_size=40)


@pytest.fixture
def filled(request, tmp_path, acts) -> Path:
    """Return a folder that sonde fills itself."""
    if request.param == "run":
        job = case(0)
        Ledger(tmp_path / "a.run", job.plan, job.wanted).put(0, 1, *job.leaf(0))
        return tmp_path / "a.run"
    if request.param == "lance":
        (tmp_path / "a.lance" / "data").mkdir(parents=True)
        return tmp_path / "a.lance" / "data"
    return acts / request.param


WITHIN = {
    "": "acts is a store of rows",
    "rows/pooled": "acts is a store of rows",
    "run": "a.run is the directory of a run",
    "lance": "a.lance is a Lance data set",
}


@pytest.mark.parametrize(("filled", "said"), WITHIN.items(), indirect=["filled"])
@pytest.mark.parametrize("command", FILES)
def test_no_file_goes_into_what_sonde_fills(
    run, place, report, acts, tmp_path, command, filled, said
):
    words, name = FILES[command]
    before = content(tmp_path)
    typed = words.format(place=place, acts=acts, tables=tmp_path).split()
    assert said in run(*typed, "-o", filled / name).error()
    assert content(tmp_path) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_no_folder_goes_into_a_store(run, place, acts, command):
    before = content(acts)
    typed = FOLDERS[command].format(place=place).split()
    assert "acts is a store of rows" in run(*typed, "-o", acts / "more").error()
    assert content(acts) == before


def test_the_manifest_of_a_store_is_not_replaced(run, place, acts):
    before = content(acts)
    ran = run("fit", "norms", "-", place / "rows.npz", "-o", acts / "store.json")
    assert "Write the output beside it" in ran.error()
    assert content(acts) == before


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("fit norms - {0}", "rows.npz"),
        ("calibrate {1}/probe.sonde - {0}", "rows.npz"),
        ("score {1}/probe.sonde - {0}", "rows.parquet"),
        ("scan - {0}", "rows.json"),
        ("scan --diff {0} {0}", "report.json"),
        ("evaluate {0} {0}", "table.html"),
        ("drift {0} {0}", "table.html"),
    ],
)
def test_what_is_read_is_not_replaced(run, place, report, tmp_path, words, file):
    sources = {"rows.npz": "rows.npz", "report.json": "report.json"}
    path = Path(shutil.copy(place / sources.get(file, "rows.npz"), tmp_path / file))
    before = path.read_bytes()
    ran = run(*words.format(path, place).split(), "-o", path)
    assert "this command reads it, so it would be overwritten" in ran.error()
    assert path.read_bytes() == before


def test_an_output_may_be_a_link(run, place, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.sonde").symlink_to(tmp_path / "far" / "b.sonde")
    words = ["fit", "spectrum", "-", place / "plain.npz", "-o"]
    assert run(*words, tmp_path / "a.sonde").code == 0
    assert {p.name for p in content(tmp_path)} == {"a.sonde", "b.sonde"}
    assert (tmp_path / "a.sonde").is_symlink()
    (tmp_path / "c.sonde").symlink_to(tmp_path / "none" / "b.sonde")
    assert "there is no folder" in run(*words, tmp_path / "c.sonde").error()
    (tmp_path / "d.sonde").symlink_to(place / "plain.npz")
    assert (
        "this command reads it, so it would be overwritten"
        in run(*words, tmp_path / "d.sonde").error()
    )


def test_rows_do_not_go_among_other_files(run, place, tmp_path):
    for name in ("b.txt", "a.txt", "d.txt", "c.txt"):
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text("x")
    words = ["read", "-", place / "plain.npz", "-o", tmp_path / "mine"]
    assert "holds other files (a.txt, b.txt, c.txt and 1 more)" in run(*words).error()
    assert "is a file" in run(*words[:-1], tmp_path / "mine" / "a.txt").error()
    assert len(content(tmp_path)) == 4
    (tmp_path / "empty").mkdir()
    assert run(*words[:-1], tmp_path / "empty").code == 0


def test_rows_that_were_begun_go_on(run, place, tmp_path):
    begun = tmp_path / "acts"
    begun.mkdir()
    (begun / "lock.tmp-0123").write_text("{}")
    (begun / "groups.arrow").write_text("x")
    words = ["read", "-", place / "plain.npz", "-o", begun]
    assert run(*words).code == 0
    (begun / "notes.txt").write_text("kept")
    assert run(*words).code == 0
    assert (begun / "notes.txt").read_text() == "kept"
