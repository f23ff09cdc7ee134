"""The lock of a run directory: refused, recognised as stale, stolen."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sonde.core.errors import StoreError
from sonde.files.lock import NAME, Holder, RunLock


def leave(directory, **changes):
    directory.mkdir(exist_ok=True)
    holder = replace(Holder.here(), **changes)
    (directory / NAME).write_text(json.dumps(asdict(holder)))
    return holder


def test_the_lock_is_there_while_held_and_gone_after(tmp_path):
    place = tmp_path / "a.run"
    with RunLock(place):
        found = Holder(**json.loads((place / NAME).read_text()))
        assert found == Holder.here()
        assert [p.name for p in place.iterdir()] == [NAME]
    assert not place.exists()


def test_a_directory_with_files_stays(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with RunLock(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_it_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


@pytest.fixture
def other_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


def test_a_live_process_is_respected_and_a_dead_one_is_not(tmp_path, other_process):
    from sonde.files import lock

    started = lock._start_time(other_process.pid)
    leave(tmp_path, pid=other_process.pid, started=started)
    with pytest.raises(StoreError, match=f"in use by process {other_process.pid}"):
        RunLock(tmp_path).__enter__()
    other_process.kill()
    other_process.wait()
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_another_process_under_the_same_number_is_not_the_holder(tmp_path, other_process):
    leave(tmp_path, pid=other_process.pid, started="1")
    with RunLock(tmp_path):
        pass


def test_a_boot_ago_is_stale(tmp_path, other_process):
    leave(tmp_path, pid=other_process.pid, boot="another boot")
    with RunLock(tmp_path):
        pass


def test_another_host_is_refused_unless_stolen(tmp_path):
    leave(tmp_path, host="elsewhere", pid=1 << 22)
    with pytest.raises(StoreError, match=r"on elsewhere\. .*remove .*lock\."):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path, steal=True):
        held = json.loads((tmp_path / NAME).read_text())
        assert held["host"] == socket.gethostname()


def test_whoever_lost_the_lock_does_not_remove_it_from_the_thief(tmp_path):
    first = RunLock(tmp_path).__enter__()
    thief = leave(tmp_path, host="elsewhere")
    first.__exit__(None, None, None)
    assert Holder(**json.loads((tmp_path / NAME).read_text())) == thief


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"host": 1}'])
def test_an_unreadable_lock_is_respected_for_a_moment_only(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(StoreError, match="in use by somebody"):
        RunLock(tmp_path).__enter__()
    old = (tmp_path / NAME).stat().st_mtime - 60
    os.utime(tmp_path / NAME, (old, old))
    with RunLock(tmp_path):
        pass


def test_where_links_are_unknown_it_works_without(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with RunLock(tmp_path / "a"):
        with pytest.raises(StoreError, match="in use"):
            RunLock(tmp_path / "a").__enter__()
        assert [p.name for p in (tmp_path / "a").iterdir()] == [NAME]


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not make the directory"):
        RunLock(tmp_path / "file" / "a.run").__enter__()


def test_a_directory_that_another_one_removes_is_made_again(tmp_path, monkeypatch):
    from sonde.files import lock

    left, real = [3], lock.open_new

    def removed(path):
        if left[0]:
            left[0] -= 1
            path.parent.rmdir()
        return real(path)

    monkeypatch.setattr(lock, "open_new", removed)
    with RunLock(tmp_path / "a.run"):
        assert (tmp_path / "a.run" / NAME).exists()
    left[0] = 10**6
    with pytest.raises(StoreError, match="keeps changing hands"):
        RunLock(tmp_path / "b.run").__enter__()
