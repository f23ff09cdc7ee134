"""A check of a report finds every changed byte, in a page and in JSON."""

import json
import random

import pytest

from sonde.core.errors import StoreError
from sonde.report import diff_to_html, load_report, save_report
from sonde.report.files import sealed_page, to_json
from sonde.report.html import to_html
from sonde.report.verifying import verify_report


@pytest.mark.truth("what was written")
@pytest.mark.parametrize("name", ["r.json", "r.html"])
def test_any_flipped_bit_is_found(bare, tmp_path, name):
    bare["limits"] = ["1 < 2 & </script> é 字"]
    path = save_report(bare, tmp_path / name)
    found = verify_report(path)
    assert found.is_sound
    assert not found.notes
    assert found.checked["n_bytes"] == path.stat().st_size
    raw = path.read_bytes()
    rng = random.Random(0)
    for at in {0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(120))}:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])
        assert not verify_report(path).is_sound, (at, raw[at - 20 : at + 20])


@pytest.mark.parametrize("name", ["r.json", "r.html"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_a_truncated_report_is_found(bare, tmp_path, name, keep):
    path = save_report(bare, tmp_path / name)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    assert len(verify_report(path).faults) == 1


@pytest.mark.parametrize("write", [to_json, to_html])
def test_a_report_without_a_hash_is_only_read(bare, tmp_path, write):
    path = tmp_path / ("r.json" if write is to_json else "r.html")
    path.write_text(write(bare), "utf-8")
    found = verify_report(path)
    assert found.is_sound
    assert "no hash" in found.notes[0]
    assert load_report(path) == bare


def test_the_hash_is_no_part_of_what_is_read(bare, tmp_path):
    path = save_report(bare, tmp_path / "r.json")
    assert "hash" in json.loads(path.read_text())
    assert load_report(path) == bare
    again = save_report(load_report(path), tmp_path / "s.json")
    assert again.read_bytes() == path.read_bytes()


def test_pages_of_other_commands_are_known(bare, tmp_path):
    path = tmp_path / "d.html"
    text = sealed_page(diff_to_html(bare, bare))
    path.write_text(text, "utf-8")
    found = verify_report(path)
    assert (found.kind, found.is_sound) == ("page", True)
    path.write_text(text.replace("<h1", "<h2", 1), "utf-8")
    assert not verify_report(path).is_sound
    path.write_text("<html><body>mine</body></html>")
    assert not verify_report(path).is_sound


def test_a_report_that_is_not_there_is_named(tmp_path):
    with pytest.raises((StoreError, OSError)):
        verify_report(tmp_path / "none.json")
