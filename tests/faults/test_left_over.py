"""What a killed writer leaves under temporary names is gone after the next one."""

import errno
from pathlib import Path

import pytest

from run_case import stream
from sonde.core.errors import StoreError
from sonde.files import durable
from sonde.files.durable import TEMPORARY
from sonde.run.passes.ranges import token_in
from sonde.store import Store, write_store

N_BEFORE = 3  # the lock, the groups, the manifest
PLACES = (
    "store.json",
    "groups.arrow",
    "head.safetensors",
    "rows/examples/0-1.arrow",
    "rows/pooled/0-1.arrow",
    "ranges/0-1.json",
)


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{TEMPORARY}*") if path.is_file()]


@pytest.mark.parametrize("manifest", [True, False], ids=["begun", "not begun"])
def test_a_store_that_is_gone_on_with_drops_them(tmp_path, manifest):
    write_store(stream(40), tmp_path, unit_size=20)
    if not manifest:
        (tmp_path / "store.json").unlink()
    for place in (*PLACES, "mine"):
        (tmp_path / f"{place}{TEMPORARY}00").write_bytes(b"half")
    write_store(stream(40), tmp_path, unit_size=20)
    assert [path.name for path in half_written(tmp_path)] == [f"mine{TEMPORARY}00"]
    assert len(Store(tmp_path)) == 40


def test_a_folder_of_another_store_is_left_alone(tmp_path):
    write_store(stream(40), tmp_path, unit_size=20)
    (tmp_path / f"ranges/0-1.json{TEMPORARY}00").write_bytes(b"half")
    with pytest.raises(OSError, match="another model, data or reading"):
        write_store(stream(60), tmp_path, unit_size=20)
    assert len(half_written(tmp_path)) == 1


def test_the_token_of_a_killed_driver_goes_with_the_next(tmp_path):
    (tmp_path / f"shared{TEMPORARY}00").write_bytes(b"")
    with token_in(tmp_path) as token:
        assert [path.name for path in half_written(tmp_path)] == [token]
    assert half_written(tmp_path) == []


@pytest.mark.parametrize("after", [0, 3, 9])
@pytest.mark.truth("errno.ENOSPC")
def test_a_disk_that_fills_while_rows_are_written_is_told_in_one_line(tmp_path, monkeypatch, after):
    """Whichever write it is: of a schema, of a batch, of a footer, in the thread that writes."""
    written, real = [], durable.write

    def full(descriptor, content):
        written.append(content)
        if len(written) > N_BEFORE + after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, content)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(StoreError, match=r"write .*arrow: No space left on device\. Free"):
        write_store(stream(40), tmp_path / "a", unit_size=20)
    assert half_written(tmp_path) == []
    monkeypatch.setattr(durable, "write", real)
    write_store(stream(40), tmp_path / "a", unit_size=20)
    assert len(Store(tmp_path / "a")) == 40
