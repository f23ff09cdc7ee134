"""A run directory is removed by the run whose it is, and by no other."""

import errno

import pytest

from run_case import Stopping, stream
from sonde.core.errors import InputError, StoreError
from sonde.detect import Mahalanobis
from sonde.files import lock
from sonde.files.lock import RunLock
from sonde.measure import UnitEntropy
from sonde.run.fitting.fit import fit
from sonde.run.passes.directory import dropped_on_error, remove_run
from sonde.run.passes.storing import dropped_if_empty
from sonde.store import Store, write_store

QUIET = {"progress": False, "unit_size": 100}


class Meeting(Stopping):
    """A stream that meets somebody when its first unit is asked for."""

    def __init__(self, inner, meet):
        super().__init__(inner)
        self.meet = meet

    def batches(self, start, stop):
        if not self.asked:
            self.meet()
        yield from super().batches(start, stop)


def fails(guard, error):
    """End the ``with`` block of a guard by an error."""
    assert not guard.__exit__(type(error), error, None)


@pytest.mark.parametrize("wrong", [None, InputError("fit: wrong data")], ids=["lock", "data"])
def test_who_meets_a_run_at_work_leaves_it_alone(tmp_path, wrong):
    """The second command saw no directory when it began, and fails while the first is at work."""
    directory, source = tmp_path / "a.run", stream(400)
    second = dropped_on_error(directory)
    second.__enter__()

    def meet():
        with pytest.raises(StoreError, match="in use by process") as refused:
            fit(Mahalanobis(), source, directory=directory, **QUIET)
        fails(second, wrong or refused.value)
        assert (directory / "plan.json").exists()
        assert (directory / "states").is_dir()

    fit(Mahalanobis(), Meeting(source, meet), directory=directory, **QUIET).save(tmp_path / "a")
    fit(Mahalanobis(), source, **QUIET).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_run_is_held_in_its_later_passes(tmp_path):
    directory, source = tmp_path / "a.run", stream(400)
    seen = []

    class Later(Stopping):
        def batches(self, start, stop):
            seen.append((directory / lock.NAME).exists())
            yield from super().batches(start, stop)

    fit(UnitEntropy(), Later(source), directory=directory, **QUIET)
    assert len(seen) > 4
    assert all(seen)
    assert not (directory / lock.NAME).exists()


def test_an_own_run_is_removed_with_its_passes(tmp_path):
    directory = tmp_path / "a.run"
    mine = dropped_on_error(directory)
    mine.__enter__()
    fit(UnitEntropy(), stream(400), directory=directory, **QUIET)
    assert (directory / "pass2" / "plan.json").exists()
    fails(mine, InputError("save: wrong"))
    assert not directory.exists()


def test_a_full_disk_has_no_room_for_a_lock_and_the_run_goes_all_the_same(tmp_path, monkeypatch):
    directory = tmp_path / "a.run"
    fit(Mahalanobis(), stream(400), directory=directory, **QUIET)

    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.SoftFileLock, "acquire", full)
    with pytest.raises(StoreError, match="No space left"):
        RunLock(directory).__enter__()
    remove_run(directory)
    assert not directory.exists()


def test_who_meets_rows_being_written_leaves_them_alone(tmp_path):
    directory, source = tmp_path / "acts", stream(400)
    second = dropped_if_empty(directory)
    second.__enter__()

    def meet():
        fails(second, InputError("read: wrong data"))
        assert (directory / lock.NAME).exists()

    write_store(Meeting(source, meet), directory, unit_size=100)
    assert len(Store(directory)) == 400
    mine = dropped_if_empty(tmp_path / "b")
    mine.__enter__()
    (tmp_path / "b" / "ranges").mkdir(parents=True)
    fails(mine, InputError("read: wrong data"))
    assert not (tmp_path / "b").exists()
