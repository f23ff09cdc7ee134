"""``sonde verify`` on everything that other commands write: exit codes, words, JSON, repair."""

import json
import random
import shutil
from pathlib import Path

import pytest

from ledger_case import case
from run_case import stream
from sonde.files.durable import TEMPORARY
from sonde.run.passes.ledger import Ledger
from sonde.store import write_store

pytestmark = pytest.mark.slow


@pytest.fixture
def acts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    return write_store(stream(120), tmp_path / "acts", unit_size=40)


def flip(path: Path) -> None:
    raw = path.read_bytes()
    at = random.Random(0).randrange(len(raw))
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def test_a_sound_store(run, acts):
    ran = run("verify", acts)
    assert ran.code == 0
    assert "sound" in ran.err
    assert "3 ranges" in ran.out
    assert "120 examples" in ran.out
    assert narrow(ran.out)
    found = run("verify", acts, "--json").json()
    assert found["sound"]
    assert (found["faults"], found["left_over"], found["removed"]) == ([], [], [])


@pytest.mark.parametrize("name", ["probe.sonde", "report.json", "report.html"])
def test_sound_files_and_damaged_ones(run, place, report, tmp_path, name):
    if name == "report.html" and not (place / name).exists():
        assert run("scan", "-", place / "one_class.npz", "-o", place / name).code == 0
    path = Path(shutil.copy(place / name, tmp_path))
    ran = run("verify", path)
    assert ran.code == 0, ran.err
    assert " 1 file, " in ran.out
    assert narrow(ran.out)
    flip(path)
    ran = run("verify", path)
    assert ran.code == 1
    assert "1 fault" in ran.err
    assert narrow(ran.out)
    assert len(run("verify", path, "--json").json()["faults"]) == 1
    assert "takes a store or a run directory" in run("verify", path, "--repair").error()


def test_a_damaged_store_is_repaired_and_read_again(run, acts):
    before = {p: p.read_bytes() for p in acts.rglob("*") if p.is_file()}
    path = next(acts.glob("rows/*/1-2.arrow"))
    flip(path)
    (acts / f"store.json{TEMPORARY}aa").write_bytes(b"x")
    ran = run("verify", acts)
    assert ran.code == 1
    assert "wrong" in ran.out
    assert "left over" in ran.out
    assert f"sonde verify {acts} --repair" in ran.err
    ran = run("verify", acts, "--repair", "--json")
    assert ran.code == 1
    assert f"store.json{TEMPORARY}aa" in ran.json()["removed"]
    assert "ranges/1-2.json" in ran.json()["removed"]
    ran = run("verify", acts)
    assert ran.code == 1
    assert "1 of 3 ranges of units are not written" in " ".join(ran.out.split())
    write_store(stream(120), acts, unit_size=40)
    assert run("verify", acts).code == 0
    assert {p: p.read_bytes() for p in acts.rglob("*") if p.is_file()} == before


def test_left_over_files_alone_are_no_fault(run, acts):
    (acts / f"store.json{TEMPORARY}aa").write_bytes(b"x")
    assert run("verify", acts).code == 0
    ran = run("verify", acts, "--repair")
    assert ran.code == 0
    assert "1 left-over file" in ran.err
    assert not list(acts.glob(f"*{TEMPORARY}*"))


def test_a_run_directory(run, tmp_path):
    job = case(0)
    place = tmp_path / "a.run"
    Ledger(place, job.plan, job.wanted).put(0, 1, *job.leaf(0))
    ran = run("verify", place)
    assert ran.code == 0
    assert "1 of 11 units" in ran.out
    flip(place / "states" / "0-1.sonde")
    assert run("verify", place).code == 1
    assert run("verify", place, "--repair").code == 1
    assert run("verify", place).code == 0


def test_what_is_in_use_is_not_repaired(run, acts):
    from sonde.files.lock import RunLock

    flip(next(acts.glob("rows/*/1-2.arrow")))
    with RunLock(acts):
        assert "in use" in run("verify", acts, "--repair").error()
    assert (acts / "ranges" / "1-2.json").exists()


def test_what_is_none_of_ours_ends_with_2(run, tmp_path):
    assert "no file" in run("verify", tmp_path / "none").error()
    assert "neither a store" in run("verify", tmp_path).error()
    (tmp_path / "a.txt").write_text("x")
    assert "expected a .sonde file" in run("verify", tmp_path / "a.txt").error()


def test_a_later_version_ends_with_2_and_stays(run, acts):
    raw = json.loads((acts / "store.json").read_text())
    (acts / "store.json").write_text(json.dumps({**raw, "version": 99}))
    before = sorted(acts.rglob("*"))
    assert "later sonde" in run("verify", acts, "--repair").error()
    assert sorted(acts.rglob("*")) == before
