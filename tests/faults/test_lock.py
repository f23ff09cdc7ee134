"""The lock of a run directory: refused, recognised as stale, stolen."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sonde.core.errors import StoreError
from sonde.files.lock import NAME, Holder, RunLock, holder_of

HERE = Holder(socket.gethostname(), os.getpid())


def leave(directory, pid=HERE.pid, host=HERE.host, started=""):
    (directory / NAME).write_text(f"{pid}\n{host}\n{started}")


def test_the_lock_is_there_while_held_and_gone_after(tmp_path):
    place = tmp_path / "a.run"
    with RunLock(place):
        assert holder_of(place) == HERE
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


HOLDS = """
import sys
from sonde.files.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.communicate(b"\n")


def test_a_live_process_is_respected_and_a_killed_one_is_not(tmp_path, other_process):
    with pytest.raises(StoreError, match=f"in use by process {other_process.pid}"):
        RunLock(tmp_path).__enter__()
    assert holder_of(tmp_path) == Holder(HERE.host, other_process.pid)
    other_process.kill()
    other_process.wait()
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert holder_of(tmp_path) == HERE


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_another_process_under_the_same_number_is_not_the_holder(tmp_path, other_process):
    *_, started = (tmp_path / NAME).read_text().splitlines()
    leave(tmp_path, other_process.pid, started=f"{int(started) + 1}\n")
    with RunLock(tmp_path):
        pass


def test_another_host_is_refused_unless_stolen(tmp_path):
    leave(tmp_path, host="elsewhere", pid=1 << 22)
    with pytest.raises(StoreError, match=r"on elsewhere\. .*remove .*lock\."):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path, steal=True):
        assert holder_of(tmp_path) == HERE


def test_whoever_lost_the_lock_does_not_remove_it_from_the_thief(tmp_path):
    first = RunLock(tmp_path).__enter__()
    thief = RunLock(tmp_path, steal=True).__enter__()
    first.__exit__(None, None, None)
    assert holder_of(tmp_path) == HERE
    thief.__exit__(None, None, None)


@pytest.mark.parametrize("content", ["", "{", "1", "one\nhost\n"])
def test_an_unreadable_lock_is_respected_for_a_moment_only(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(StoreError, match="in use by somebody"):
        RunLock(tmp_path).__enter__()
    old = (tmp_path / NAME).stat().st_mtime - 60
    os.utime(tmp_path / NAME, (old, old))
    with RunLock(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not make the directory"):
        RunLock(tmp_path / "file" / "a.run").__enter__()


def test_a_directory_that_another_one_removes_is_made_again(tmp_path, monkeypatch):
    from sonde.files import lock

    real = lock.make_directory

    def removed(path):
        real(path)
        path.rmdir()

    monkeypatch.setattr(lock, "make_directory", removed)
    with RunLock(tmp_path / "a.run"):
        assert (tmp_path / "a.run" / NAME).exists()
