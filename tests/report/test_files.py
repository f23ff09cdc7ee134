import errno
import json
import os
from pathlib import Path

import pytest

from sonde.core.errors import InputError, StateError, StoreError
from sonde.report import files, load_report, save_report
from sonde.report.files import sealed_page


@pytest.mark.parametrize("name", ["r.json", "r.html", "r.HTM"])
def test_a_report_comes_back_as_it_was_written(bare, tmp_path: Path, name: str) -> None:
    bare["limits"] = ["1 < 2 & </script> é 字 \u2028"]
    path = save_report(bare, tmp_path / name)
    assert load_report(path) == bare
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_two_writes_give_the_same_bytes(report, page, tmp_path: Path) -> None:
    text = save_report(report, tmp_path / "a.html").read_text("utf-8")
    assert text == sealed_page(page)
    assert text.startswith(page)


def test_another_ending_is_refused(report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.html or \.json"):
        save_report(report, tmp_path / "r.pdf")


def test_a_folder_that_is_missing_is_named(bare, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        save_report(bare, tmp_path / "none" / "r.json")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    bare, tmp_path: Path, monkeypatch
) -> None:
    path = save_report(bare, tmp_path / "r.json")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    bare["limits"] = ["new"]
    with pytest.raises(StoreError, match="No space left"):
        save_report(bare, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


HOSTILE = {
    "empty": (b"", StoreError),
    "not json": (b"{]", StoreError),
    "not a number": (b'{"schema": NaN}', StoreError),
    "binary": (b"\x80\x00\xff", StoreError),
    "deep": (b"[" * 200_000, StoreError),
    "another page": (b"<html><body>hello</body></html>", StoreError),
    "page with broken json": (
        b'<html><script type="application/json" id="sonde">{"a": 1,</script>',
        StoreError,
    ),
    "a list": (b"[1, 2]", StateError),
    "another schema": (b'{"schema": "sonde-scan/9"}', StateError),
    "half of it": (b'{"schema": "sonde-scan/1"}', StateError),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    content, error = HOSTILE[kind]
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(error):
        load_report(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": "x" * 2000}))
    with pytest.raises(StoreError, match="at most"):
        load_report(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json: No such file"):
        load_report(tmp_path / "none.json")
