"""Commits: the fixed tree on disk gives the bits of the fold in memory, whatever the order."""

import itertools
import json
import random

import pytest
import torch

from ledger_case import N_UNITS, case, in_memory, run_units, same
from sonde.core.errors import StateError, StoreError
from sonde.core.plan import Plan
from sonde.files.durable import atomic_write
from sonde.files.state_file import write_state
from sonde.run.passes.ledger import Ledger
from sonde.run.passes.units import Range, add_counters, join_units, nodes
from sonde.stats.moments import MomentsState


@pytest.mark.truth("engine.passes: grow and fold in memory")
@pytest.mark.parametrize("level", [0, 1, 2, 5])
def test_states_have_the_bits_of_the_fold_in_memory(tmp_path, level):
    job = case(level)
    ledger = Ledger(tmp_path / "a.run", job.plan, job.wanted)
    run_units(ledger, job)
    states, counters = ledger.finish()
    expected, expected_counters = in_memory(job)
    same(states, expected)
    assert counters == expected_counters
    assert counters["rows"]["x"] == job.n_rows - counters["nonfinite"]["x"]
    assert counters["nonfinite"]["x"] == 3


@pytest.mark.truth("engine.passes: grow and fold in memory")
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_units_and_any_moment_of_compaction_give_the_same_bits(tmp_path, seed):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    order = random.Random(seed)
    units = list(range(N_UNITS))
    order.shuffle(units)
    for unit in units:
        ledger.put(unit, unit + 1, *job.leaf(unit))
        if order.random() < 0.4:
            ledger.compact()
    same(ledger.finish()[0], in_memory(job)[0])


def test_sub_ranges_of_a_commit_may_be_put_and_only_the_rest_is_missing(tmp_path):
    job = case(2)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    assert ledger.missing() == [(0, 4), (4, 8), (8, 11)]
    ledger.put(4, 5, *job.leaf(4))
    ledger.put(10, 11, *job.leaf(10))
    assert ledger.missing() == [(0, 4), (5, 6), (6, 8), (8, 10)]
    assert ledger.n_done == 2
    run_units(ledger, job)
    same(ledger.finish()[0], in_memory(job)[0])


def test_the_files_that_wait_are_few(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    for unit in range(N_UNITS):
        ledger.put(unit, unit + 1, *job.leaf(unit))
        ledger.compact()
        n_files = len(list((tmp_path / "states").iterdir()))
        assert n_files == bin(unit + 1).count("1")


def test_a_partial_result_can_be_read_at_any_time(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    assert ledger.partial() == (dict.fromkeys(job.wanted), {}, [])
    for unit in (0, 1, 2, 6):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    states, counters, units = ledger.partial()
    assert units == [[0, 2], [6, 6]]
    moments = next(s for s in states.values() if isinstance(s, MomentsState))
    assert moments.n == counters["rows"]["x"]
    for unit in (3, 4, 5, 7, 8, 9, 10):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    same(ledger.partial()[0], in_memory(job)[0])
    assert ledger.n_done == N_UNITS


def test_finish_names_what_is_missing(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    for unit in (0, 1, 2, 6):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    with pytest.raises(StateError, match="7 of 11 units are not committed, the first at 3"):
        ledger.finish()


def test_resume_continues_and_another_plan_is_refused(tmp_path):
    job = case(0)
    first = Ledger(tmp_path, job.plan, job.wanted)
    assert not first.resumed
    first.put(0, 1, *job.leaf(0))
    again = Ledger(tmp_path, job.plan, job.wanted)
    assert again.resumed
    assert again.missing()[0] == (1, 2)
    other = Plan({**job.plan.stream, "seed": 5}, job.plan.requests, job.plan.bounds)
    with pytest.raises(StoreError, match=r"another plan.*--fresh"):
        Ledger(tmp_path, other, job.wanted)
    assert Ledger(tmp_path, job.plan, job.wanted).n_done == 1
    fresh = Ledger(tmp_path, other, job.wanted, fresh=True)
    assert (fresh.n_done, fresh.resumed) == (0, False)


def test_states_of_another_plan_never_count(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    ledger.put(0, 1, *job.leaf(0))
    (tmp_path / "plan.json").unlink()
    other = Plan({**job.plan.stream, "seed": 5}, job.plan.requests, job.plan.bounds)
    assert Ledger(tmp_path, other, job.wanted).n_done == 0


def test_only_nodes_of_the_tree_are_taken(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    for start, stop in [(1, 3), (0, 3), (3, 3), (-1, 0), (8, 12), (9, 11)]:
        with pytest.raises(StateError, match="aligned range"):
            ledger.put(start, stop, *job.leaf(0))


@pytest.mark.truth("brute force: recursive halving of the next power of two")
@pytest.mark.parametrize("n_units", range(1, 20))
def test_nodes_are_those_of_the_halving_tree(n_units):
    expected: set[tuple[int, int]] = set()

    def walk(start, length):
        stop = min(start + length, n_units)
        if start >= n_units:
            return
        expected.add((start, stop))
        if length > 1:
            walk(start, length // 2)
            walk(start + length // 2, length // 2)

    walk(0, 1 << n_units.bit_length())
    found = {
        (a, b)
        for a, b in itertools.product(range(-1, n_units + 2), repeat=2)
        if Range(a, b).is_node(n_units)
    }
    assert found == expected
    for start, stop in itertools.combinations(range(n_units + 1), 2):
        cover = nodes(start, stop, n_units)
        assert [u for r in cover for u in range(r.start, r.stop)] == list(range(start, stop))
        assert all((r.start, r.stop) in expected for r in cover)


def test_a_range_that_a_larger_one_covers_is_never_merged(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    for unit in range(4):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    part = (tmp_path / "states" / "0-1.sonde").read_bytes()
    ledger.compact()
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["0-4.sonde"]
    atomic_write(tmp_path / "states" / "0-1.sonde", part)
    ledger.put(1, 2, *job.leaf(1))
    assert ledger.n_done == 4
    resumed = Ledger(tmp_path, job.plan, job.wanted)
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["0-4.sonde"]
    run_units(resumed, job)
    same(resumed.finish()[0], in_memory(job)[0])


def test_plan_and_headers_say_nothing_of_the_machine(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path / "one.run", job.plan, job.wanted, durable=False)
    twin = Ledger(tmp_path / "two.run", job.plan, job.wanted)
    for each in (ledger, twin):
        each.put(0, 1, *job.leaf(0))
    files = ["plan.json", "states/0-1.sonde"]
    one, two = ([(d / f).read_bytes() for f in files] for d in (ledger.directory, twin.directory))
    assert one == two
    assert json.loads(one[0])["n_units"] == N_UNITS


def test_remove_leaves_files_that_are_not_ours(tmp_path):
    job = case(0)
    directory = tmp_path / "a.run"
    ledger = Ledger(directory, job.plan, job.wanted)
    ledger.put(0, 1, *job.leaf(0))
    (directory / "notes.txt").write_text("mine")
    ledger.remove()
    assert [p.name for p in directory.iterdir()] == ["notes.txt"]
    (directory / "notes.txt").unlink()
    ledger.remove()
    assert not directory.exists()


def test_a_run_without_units_is_complete(tmp_path):
    job = case(0)
    empty = Plan(job.plan.stream, job.plan.requests, (0,))
    assert Ledger(tmp_path, empty, job.wanted).finish() == (dict.fromkeys(job.wanted), {})


@pytest.mark.truth("sets of integers")
def test_unit_sets_join_like_sets_and_refuse_overlap():
    rng = random.Random(1)
    for _ in range(200):
        a = sorted(rng.sample(range(30), rng.randrange(12)))
        b = sorted(rng.sample(range(30), rng.randrange(12)))
        if set(a) & set(b):
            with pytest.raises(StateError, match="overlap"):
                join_units(intervals(a), intervals(b))
        else:
            assert join_units(intervals(a), intervals(b)) == intervals(sorted(a + b))


def intervals(units):
    found: list[list[int]] = []
    for unit in units:
        if found and found[-1][1] == unit - 1:
            found[-1][1] = unit
        else:
            found.append([unit, unit])
    return found


def test_counters_add_as_trees():
    a, b = {"rows": {"x": 2}, "n": 1}, {"rows": {"x": 3, "y": 4}, "skipped": 1}
    assert add_counters(a, b) == {"rows": {"x": 5, "y": 4}, "n": 1, "skipped": 1}
    assert a == {"rows": {"x": 2}, "n": 1}


def test_a_file_of_other_units_under_this_name_is_done_again(tmp_path, caplog):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    states, counters = job.leaf(3)
    header = {"plan": job.plan.id, "units": [[4, 4]], "counters": counters}
    write_state(tmp_path / "states" / "3-4.sonde", header, states)
    assert (3, 4) not in ledger.missing()
    assert (3, 4) in Ledger(tmp_path, job.plan, job.wanted).missing()
    assert "units 3 to 3 are computed again" in caplog.text


def test_an_empty_state_is_kept_as_none(tmp_path):
    job = case(0)
    ledger = Ledger(tmp_path, job.plan, job.wanted)
    nothing = dict.fromkeys(job.wanted)
    for unit in range(N_UNITS):
        ledger.put(unit, unit + 1, nothing if unit % 2 else job.leaf(unit)[0], {})
        ledger.compact()
    states, _ = ledger.finish()
    moments = next(s for s in states.values() if isinstance(s, MomentsState))
    expected = sum(
        next(s for s in job.leaf(u)[0].values() if isinstance(s, MomentsState)).n
        for u in range(0, N_UNITS, 2)
    )
    assert moments.n == expected
    assert torch.isfinite(moments.mean).all()


@pytest.mark.truth("the bytes of merging pair by pair")
def test_waiting_commits_are_merged_up_the_tree_with_one_write(tmp_path, monkeypatch):
    job, written = case(0), []
    real = Ledger._write

    def noted(self, place, states, counters):
        written.append(place.name)
        real(self, place, states, counters)

    monkeypatch.setattr(Ledger, "_write", noted)
    found = []
    for name, limit in {"pairs": 0, "levels": 2**26}.items():
        monkeypatch.setattr("sonde.run.passes.ledger.FOLD_BYTES", limit)
        ledger = Ledger(tmp_path / name, job.plan, job.wanted, durable=False)
        for unit in range(8):
            ledger.put(unit, unit + 1, *job.leaf(unit))
        written.clear()
        ledger.compact()
        found.append((len(written), (tmp_path / name / "states" / "0-8.sonde").read_bytes()))
        assert len(list((tmp_path / name / "states").iterdir())) == 1
    assert [n for n, _ in found] == [7, 1]
    assert found[0][1] == found[1][1]


@pytest.mark.truth("engine.passes: grow and fold in memory")
@pytest.mark.parametrize("seed", range(4))
def test_workers_that_merge_what_they_commit_leave_the_ranges_of_a_binary_number(tmp_path, seed):
    job = case(0)
    driver = Ledger(tmp_path, job.plan, job.wanted, durable=False)
    workers = [Ledger(tmp_path, job.plan, job.wanted, worker=True, durable=False) for _ in range(3)]
    units = random.Random(seed).sample(range(N_UNITS), N_UNITS)
    for i, unit in enumerate(units):
        workers[i % 3].put(unit, unit + 1, *job.leaf(unit))
        workers[i % 3].climb(unit, unit + 1)
    left = sorted(p.name for p in (tmp_path / "states").iterdir())
    assert left == ["0-8.sonde", "10-11.sonde", "8-10.sonde"]
    same(driver.finish()[0], in_memory(job)[0])


def test_two_workers_that_merge_the_same_parts_at_once_do_no_harm(tmp_path, monkeypatch):
    """The second one reads before the first removes, and writes what is covered by then."""
    job = case(0)
    driver = Ledger(tmp_path, job.plan, job.wanted, durable=False)
    first, second = (
        Ledger(tmp_path, job.plan, job.wanted, worker=True, durable=False) for _ in range(2)
    )
    for unit in range(4):
        driver.put(unit, unit + 1, *job.leaf(unit))
    real, turns = Ledger._write, []

    def late(self, place, states, counters):
        if self is second and not turns:
            turns.append(place.name)
            first.climb(0, 1)
            first.climb(2, 3)
        real(self, place, states, counters)

    monkeypatch.setattr(Ledger, "_write", late)
    second.climb(1, 2)
    assert turns == ["0-2.sonde"]
    names = {p.name for p in (tmp_path / "states").iterdir()}
    assert names == {"0-4.sonde", "0-2.sonde"}
    assert driver.n_done == 4
    driver.compact()
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["0-4.sonde"]
    for unit in range(4, N_UNITS):
        driver.put(unit, unit + 1, *job.leaf(unit))
    same(driver.finish()[0], in_memory(job)[0])
