"""Atomic writes: the file is whole or not there, and errors say what to do."""

import errno
import os
import subprocess
import sys

import pytest

from file_limit import files_up_to
from sonde.core.errors import StoreError
from sonde.files import durable
from sonde.files.durable import atomic_file, atomic_write, make_directory


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_bytes_and_pieces_arrive(tmp_path):
    atomic_write(tmp_path / "a", b"one")
    atomic_write(tmp_path / "b", (bytes([i]) for i in range(5)))
    atomic_write(str(tmp_path / "c"), memoryview(b"view"), durable=False)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_bytes() == bytes(range(5))
    assert (tmp_path / "c").read_bytes() == b"view"
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, there):
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "link", tmp_path / "far" / "file"
    link.symlink_to(file)
    if there:
        file.write_bytes(b"old")
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["file"]


def test_a_link_to_itself_becomes_the_file(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    atomic_write(tmp_path / "a", b"old")

    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_durable_syncs_the_file_before_the_rename_and_the_directory_after(tmp_path, monkeypatch):
    calls = []
    for name in durable.PRIMITIVES:
        real = getattr(durable, name)
        monkeypatch.setattr(
            durable, name, lambda *a, _name=name, _real=real: (calls.append(_name), _real(*a))[1]
        )
    atomic_write(tmp_path / "a", b"x")
    assert calls == ["open_new", "write", "fsync", "replace", "fsync"]
    calls.clear()
    atomic_write(tmp_path / "a", b"x", durable=False)
    assert calls == ["open_new", "write", "replace"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EACCES, "permission to write"),
        (errno.EROFS, "permission to write"),
        (errno.EIO, "Check the path and the disk"),
    ],
)
@pytest.mark.parametrize("primitive", ["open_new", "write", "fsync", "replace"])
def test_an_error_of_the_system_is_a_store_error_that_says_what_to_do(
    tmp_path, monkeypatch, primitive, number, advice
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, primitive, fail)
    with pytest.raises(StoreError, match=f"could not write .*a: {os.strerror(number)}. .*{advice}"):
        atomic_write(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_a_missing_directory_and_a_directory_in_place_of_the_file(tmp_path):
    with pytest.raises(StoreError, match="Check that the directory exists"):
        atomic_write(tmp_path / "none" / "a", b"x")
    (tmp_path / "d").mkdir()
    with pytest.raises(StoreError, match="could not write"):
        atomic_write(tmp_path / "d", b"x")
    assert names(tmp_path) == ["d"]
    atomic_write(tmp_path / "f", b"x")
    with pytest.raises(StoreError, match="could not make the directory"):
        make_directory(tmp_path / "f" / "g")


@pytest.mark.truth("RLIMIT_FSIZE of the operating system")
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    with pytest.raises(StoreError, match=r"File too large\. Free some space"), files_up_to(1000):
        atomic_write(tmp_path / "a", bytes(5000))
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_environment_ends_the_process_at_a_call(tmp_path):
    program = (
        "import os, pathlib; from sonde.files.durable import atomic_write\n"
        f"top = pathlib.Path({str(tmp_path)!r})\n"
        "for n in range(1, 7):\n"
        "    (top / str(n)).mkdir()\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.environ['SONDE_FAULT'] = str(n)\n"
        "        atomic_write(top / str(n) / 'a', b'x')\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["137"] * 5 + ["0"]
    left = {n: names(tmp_path / str(n)) for n in range(1, 7)}
    assert [len(left[n]) for n in range(1, 7)] == [0, 1, 1, 1, 1, 1]
    assert [left[n] == ["a"] for n in range(2, 7)] == [False, False, False, True, True]


def test_arrow_can_write_into_an_atomic_file(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"x": [1, 2, 3]})
    with (
        atomic_file(tmp_path / "a.arrow") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().equals(table)
    assert names(tmp_path) == ["a.arrow"]


def test_a_long_name_fits(tmp_path):
    atomic_write(tmp_path / ("n" * 250), b"x")
    assert names(tmp_path) == ["n" * 250]
