"""Killed anywhere, a run resumes to the bytes of the undisturbed one."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from file_limit import files_up_to
from kill_case import attempt, fit, put, undisturbed
from ledger_case import case, in_memory, same
from sonde.core.errors import StateError, StoreError
from sonde.files import durable
from sonde.files.lock import RunLock
from sonde.files.state_file import read_state, state_type
from sonde.run.passes.ledger import Ledger

TESTS = Path(__file__).parent.parent


def kill_case(how: str, top: Path) -> int:
    done = subprocess.run(
        [sys.executable, "kill_case.py", how, str(top)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.essential
def test_killed_at_every_file_primitive(tmp_path):
    assert kill_case("every", tmp_path) > 100


@pytest.mark.slow
def test_killed_again_while_resuming(tmp_path):
    assert kill_case("twice", tmp_path) > 30


@pytest.mark.parametrize("n", [1, 4, 9, 20, 41, 60])
def test_killed_at_some_file_primitives(tmp_path, n):
    job = case(0)
    expected = undisturbed(tmp_path, job)
    place = tmp_path / "killed"
    place.mkdir()
    assert attempt(place, job, n, random.Random(n))
    assert not (place / "fit.sonde").exists()
    fit(place, job, random.Random(-n))
    assert (place / "fit.sonde").read_bytes() == expected


def test_a_part_that_was_merged_already_is_not_merged_again(tmp_path, monkeypatch):
    """With the rule that hides covered parts switched off, the overlap is an error, not a sum."""
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted, durable=False)
    ledger.put(1, 2, *job.leaf(1))
    ledger.put(0, 2, *job.leaf(0))
    assert ledger.partial()[2] == [[0, 1]]
    monkeypatch.setattr(Ledger, "_committed", Ledger._listed)
    with pytest.raises(StateError, match="overlap, so rows would count twice"):
        ledger.partial()


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 2])
def test_units_in_any_order_give_the_same_file(tmp_path, level):
    job = case(level)
    expected = undisturbed(tmp_path, job)
    for seed in range(6):
        place = tmp_path / f"{seed}"
        place.mkdir()
        fit(place, job, random.Random(seed))
        assert (place / "fit.sonde").read_bytes() == expected


def test_a_second_runner_on_the_directory_is_refused(tmp_path):
    job = case(0)
    with RunLock(tmp_path):
        Ledger(tmp_path, job.plan, job.wanted)
        with pytest.raises(StoreError, match=r"in use by process \d+ on .*remove .*lock\."):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass


@pytest.mark.slow
def test_two_runners_at_once_do_no_harm_beyond_waste(tmp_path):
    """Without the lock: both put and compact in turns, each with its own view of the directory."""
    job = case(0)
    expected = in_memory(job)
    for seed in range(8):
        rng = random.Random(seed)
        directory = tmp_path / str(seed)
        pair = [Ledger(directory, job.plan, job.wanted, durable=False) for _ in range(2)]
        plans = [rng.sample(range(job.plan.n_units), job.plan.n_units) for _ in pair]
        while any(plans):
            who = rng.choice([i for i in (0, 1) if plans[i]])
            unit = plans[who].pop()
            pair[who].put(unit, unit + 1, *job.leaf(unit))
            if rng.random() < 0.5:
                rng.choice(pair).compact()
        states, counters = pair[0].finish()
        same(states, expected[0])
        assert counters == expected[1]


def test_a_part_that_vanishes_while_it_is_merged_is_looked_for_again(tmp_path, monkeypatch):
    """The other runner merged and removed the parts between our listing and our reading."""
    job = case(0)
    ours = Ledger(tmp_path, job.plan, job.wanted)
    theirs = Ledger(tmp_path, job.plan, job.wanted)
    for unit in range(job.plan.n_units):
        ours.put(unit, unit + 1, *job.leaf(unit))
    real, done = Ledger._read, []

    def late(self, place):
        if self is ours and not done:
            done.append(place)
            theirs.compact()
        return real(self, place)

    monkeypatch.setattr(Ledger, "_read", late)
    ours.compact()
    assert done
    same(ours.finish()[0], in_memory(job)[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "duplicated", "swapped"])
def test_a_damaged_unit_is_done_again(tmp_path, damage, caplog):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    for unit in (0, 2, 4, 5, 6):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    ledger.compact()
    victim, other = (tmp_path / "states" / name for name in ("2-3.sonde", "6-7.sonde"))
    content = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(content[:-5])
    elif damage == "flipped":
        victim.write_bytes(content[:-5] + bytes([content[-5] ^ 8]) + content[-4:])
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "duplicated":
        (tmp_path / "states" / "3-4.sonde").write_bytes(content)
    else:
        victim.write_bytes(other.read_bytes())
    resumed = Ledger(tmp_path, job.plan, job.wanted)
    again = (3, 4) if damage == "duplicated" else (2, 3)
    assert again in resumed.missing()
    assert "are computed again" in caplog.text
    for start, stop in resumed.missing():
        put(resumed, job, start, stop)
    same(resumed.finish()[0], in_memory(job)[0])


def test_damage_while_running_is_found_when_the_part_is_merged(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    ledger.put(0, 1, *job.leaf(0))
    victim = tmp_path / "states" / "0-1.sonde"
    victim.write_bytes(victim.read_bytes()[:-1])
    ledger.put(1, 2, *job.leaf(1))
    ledger.compact()
    assert ledger.missing()[0] == (0, 1)
    while todo := ledger.missing():
        for start, stop in todo:
            put(ledger, job, start, stop)
        ledger.compact()
    same(ledger.finish()[0], in_memory(job)[0])


@pytest.mark.truth("RLIMIT_FSIZE of the operating system")
def test_a_full_disk_keeps_what_was_committed(tmp_path):
    job = case(0)
    directory = tmp_path / "fit.run"
    ledger = Ledger(directory, job.plan, job.wanted)
    for unit in range(3):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    ledger.compact()
    said = "File too large. Free some space or choose another folder; earlier commits"
    leaf = job.leaf(3)
    with pytest.raises(StoreError, match=said), files_up_to(1000):
        ledger.put(3, 4, *leaf)
    assert not list(directory.rglob(f"*{durable.TEMPORARY}*"))
    resumed = Ledger(directory, job.plan, job.wanted)
    assert resumed.n_done == 3
    for start, stop in resumed.missing():
        put(resumed, job, start, stop)
    same(resumed.finish()[0], in_memory(job)[0])


def test_the_final_file_decodes_to_the_states_in_memory(tmp_path):
    job = case(0)
    undisturbed(tmp_path, job)
    types = {i: state_type(r.statistic) for i, r in job.wanted.items()}
    header, states = read_state(tmp_path / "whole" / "fit.sonde", types)
    expected, counters = in_memory(job)
    same(states, expected)
    assert header == {"counters": counters}
