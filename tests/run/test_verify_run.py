"""A check of a run directory finds every damaged commit; after a repair the run ends the same."""

import json
import random
import shutil
from pathlib import Path

import pytest

from ledger_case import case, in_memory, run_units, same
from sonde.core.errors import InputError, StoreError
from sonde.files.durable import TEMPORARY
from sonde.run.comparing.verify_run import is_run_directory, verify_run
from sonde.run.passes.ledger import Ledger
from sonde.store import repair

DONE = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run in which seven of eleven units are done: files of four, two and one."""
    place = tmp_path_factory.mktemp("run") / "a.run"
    job = case(0)
    ledger = Ledger(place, job.plan, job.wanted)
    for unit in range(DONE):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    ledger.compact()
    return place


@pytest.fixture
def place(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "a.run"))


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def assert_ends_the_same(place: Path) -> None:
    job = case(0)
    ledger = Ledger(place, job.plan, job.wanted)
    run_units(ledger, job)
    states, counters = ledger.finish()
    expected, expected_counters = in_memory(job)
    same(states, expected)
    assert counters == expected_counters


@pytest.mark.truth("what was committed")
def test_a_sound_run_is_sound_and_counted(whole):
    found = verify_run(whole)
    assert found.is_sound, found.faults
    assert not found.leftovers
    assert found.checked["n_units"] == DONE
    assert found.checked["n_files"] == len(names(whole)) == 4
    assert found.checked["n_bytes"] == sum(
        p.stat().st_size for p in whole.rglob("*.*") if p.is_file()
    )
    assert found.notes == ("7 of 11 units are done",)


@pytest.mark.parametrize("name", ["plan.json", "states/0-4.sonde", "states/6-7.sonde"])
def test_any_flipped_bit_is_found_and_the_run_ends_the_same(place, name):
    rng = random.Random(1)
    path = place / name
    raw = path.read_bytes()
    for at in {0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(60))}:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])
        try:
            found = verify_run(place)
        except StoreError as error:
            later = str(error)
            assert_is_a_version(raw, at, later)
            continue
        assert not found.is_sound, at
    repair(place, verify_run(place))
    assert_ends_the_same(place)


def assert_is_a_version(raw: bytes, at: int, text: str) -> None:
    assert "later sonde" in text
    assert b"version" in raw[max(0, at - 14) : at]


@pytest.mark.parametrize("name", ["plan.json", "states/0-4.sonde", "states/6-7.sonde"])
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_truncated_file_is_removed_and_its_units_done_again(place, name, keep):
    raw = (place / name).read_bytes()
    (place / name).write_bytes(raw[: int(len(raw) * keep)])
    found = verify_run(place)
    assert [fault.path for fault in found.faults] == [place / name]
    assert repair(place, found) == [place / name]
    assert len(names(place)) == 3
    assert_ends_the_same(place)


def test_units_under_another_name_are_found(place):
    shutil.copy(place / "states" / "6-7.sonde", place / "states" / "9-10.sonde")
    found = verify_run(place)
    assert [f.what for f in found.faults] == ["contains other units than its file name: [[6, 6]]"]
    assert [p.name for p in repair(place, found)] == ["9-10.sonde"]
    assert verify_run(place).is_sound


def test_a_covered_range_and_temporary_files_are_left_over(place, whole):
    job = case(0)
    aside = place.parent / "aside"
    Ledger(aside, job.plan, job.wanted).put(2, 3, *job.leaf(2))
    shutil.copy(aside / "states" / "2-3.sonde", place / "states")
    (place / "states" / f"8-9.sonde{TEMPORARY}ab").write_bytes(b"half")
    (place / "mine.txt").write_text("mine")
    found = verify_run(place)
    assert found.is_sound
    assert found.checked["n_units"] == DONE
    assert {p.name for p in repair(place, found)} == {"2-3.sonde", f"8-9.sonde{TEMPORARY}ab"}
    assert names(place) == sorted([*names(whole), "mine.txt"])


def test_a_part_stays_where_the_range_that_covers_it_is_damaged(place):
    job = case(0)
    aside = place.parent / "aside"
    Ledger(aside, job.plan, job.wanted).put(2, 3, *job.leaf(2))
    shutil.copy(aside / "states" / "2-3.sonde", place / "states")
    path = place / "states" / "0-4.sonde"
    path.write_bytes(path.read_bytes()[:-1])
    found = verify_run(place)
    assert not found.leftovers
    assert found.checked["n_units"] == DONE - 3
    assert repair(place, found) == [path]
    assert_ends_the_same(place)


def test_states_of_another_plan_are_found(place):
    raw = json.loads((place / "plan.json").read_text())
    text = json.dumps({**raw, "stage": 1}, sort_keys=True, separators=(",", ":"))
    (place / "plan.json").write_text(text + "\n")
    assert {f.what for f in verify_run(place).faults} == {"belongs to another plan"}


def test_passes_inside_are_checked_too(place, whole, tmp_path):
    both = tmp_path / "both.run"
    shutil.copytree(whole, both / "1")
    shutil.copytree(whole, both / "2")
    assert is_run_directory(both)
    assert verify_run(both).checked["n_units"] == 2 * DONE
    (both / "2" / "states" / "0-4.sonde").write_bytes(b"")
    found = verify_run(both)
    assert [f.path.relative_to(both).as_posix() for f in found.faults] == ["2/states/0-4.sonde"]


def test_a_later_version_is_not_judged(place):
    raw = json.loads((place / "plan.json").read_text())
    (place / "plan.json").write_text(json.dumps({**raw, "version": 7}))
    with pytest.raises(StoreError, match=r"later sonde \(version 7"):
        verify_run(place)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        verify_run(tmp_path)
