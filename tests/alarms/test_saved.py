"""A stream that is interrupted goes on as if it had not been."""

import math

import numpy as np
import pytest
import torch

from sonde.alarms import ChangeDetector, Cusum, EProcess
from sonde.alarms._saved import WatchState, save_watch
from sonde.core.errors import StateError

SCORES = np.random.default_rng(0).integers(0, 40, 300).tolist() + [50.0, math.inf] * 20


def e_process():
    return EProcess(range(30), delta=0.03, seed=5)


def change_detector():
    return ChangeDetector(range(30), patience=30, seed=5)


@pytest.mark.truth("the same stream without an interruption")
@pytest.mark.parametrize("start", [e_process, change_detector])
@pytest.mark.parametrize("at", [0, 1, 170, 325])
def test_an_interrupted_stream_is_the_uninterrupted_one(start, at, tmp_path):
    whole, watch = start(), start()
    want = [whole.update(score) for score in SCORES]
    assert len({w.alarm for w in want}) == 2
    found = [watch.update(score) for score in SCORES[:at]]
    watch.save(tmp_path / "watch.sonde")
    again = type(watch).load(tmp_path / "watch.sonde")
    found += [again.update(score) for score in SCORES[at:]]
    assert found == want


@pytest.mark.truth("the same stream without an interruption")
def test_a_sum_is_saved_with_its_parameters(tmp_path):
    found = Cusum(slack=0.25, limit=3.0).after(2.0).after(0.125)
    found.save(tmp_path / "sum.sonde")
    assert Cusum.load(tmp_path / "sum.sonde") == found


def test_the_same_stream_gives_the_same_file(tmp_path):
    ids = [e_process().save(tmp_path / f"{name}.sonde") for name in "ab"]
    assert len(set(ids)) == 1
    later = e_process()
    later.update(3.0)
    assert later.save(tmp_path / "c.sonde") not in ids


def test_a_file_of_something_else_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "watch.sonde"
    e_process().save(path)
    with pytest.raises(StateError, match=r"ChangeDetector.load: expected a file that"):
        ChangeDetector.load(path)
    with pytest.raises(StateError, match=r"Cusum.load: expected a file that"):
        Cusum.load(path)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StateError):
        EProcess.load(path)


@pytest.mark.parametrize(("n", "sides"), [(1, "high"), (5, "both")])
def test_a_change_detector_of_an_earlier_version_goes_on(n, sides, tmp_path):
    won = torch.arange(1.0, n + 1, dtype=torch.float64)
    state = WatchState(torch.arange(30, dtype=torch.float64), won, 1e6, 5, 0, 0)
    save_watch(tmp_path / "old.sonde", "ChangeDetector", state)
    again = ChangeDetector.load(tmp_path / "old.sonde")
    assert again.sides == sides
    new = ChangeDetector(range(30), patience=1e6, seed=5, sides=sides)
    assert again.update(29.5).wealth > new.update(29.5).wealth
