"""A check of a report finds every changed byte, in a page and in JSON."""

import json
import random
from typing import Any

import pytest

from sonde.core.errors import StoreError
from sonde.report import diff_to_html, load_report, save_report
from sonde.report.documents import save_document, to_page
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
    assert (found.kind, found.is_sound) == ("difference of two scans", True)
    path.write_text(text.replace("<h1", "<h2", 1), "utf-8")
    assert not verify_report(path).is_sound
    path.write_text("<html><body>mine</body></html>")
    assert not verify_report(path).is_sound


def test_a_page_without_json_is_known_by_its_hash(tmp_path):
    path = tmp_path / "d.html"
    path.write_text(sealed_page("<html><body>made by another sonde</body></html>"), "utf-8")
    found = verify_report(path)
    assert (found.kind, found.is_sound) == ("page", True)


DRIFT: dict[str, Any] = {
    "schema": "sonde-drift/1", "level": 0.05, "correction": "holm", "moved": None,
    "identical": False, "rows": "other", "same_model": True, "notes": [], "sites": [],
    "comparisons": [], "left_out": [], "direction": None, "states": [],
    **{side: {"name": side, "model": None, "n_examples": 9, "n_groups": 0}
       for side in ("first", "second")},
}  # fmt: skip


@pytest.mark.truth("what was written")
@pytest.mark.parametrize("name", ["d.json", "d.html"])
def test_a_drift_is_sound_until_a_bit_is_flipped(tmp_path, name):
    path = save_document(DRIFT, tmp_path / name)
    found = verify_report(path)
    assert (found.kind, found.faults, found.notes) == ("drift", (), ())
    raw = path.read_bytes()
    rng = random.Random(0)
    for at in {0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(60))}:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])
        assert not verify_report(path).is_sound, (at, raw[at - 20 : at + 20])


@pytest.mark.parametrize("write", [to_json, to_page])
def test_a_drift_without_a_hash_is_only_read(tmp_path, write):
    path = tmp_path / ("d.json" if write is to_json else "d.html")
    path.write_text(write(DRIFT), "utf-8")
    found = verify_report(path)
    assert (found.kind, found.is_sound) == ("drift", True)
    assert "no hash" in found.notes[0]


@pytest.mark.parametrize("text", ["[]", '{"schema": ["sonde-drift/1"]}', '{"schema": "other/1"}'])
def test_json_of_no_schema_of_ours_is_no_report(tmp_path, text):
    path = tmp_path / "d.json"
    path.write_text(text)
    assert not verify_report(path).is_sound


def test_a_report_that_is_not_there_is_named(tmp_path):
    with pytest.raises((StoreError, OSError)):
        verify_report(tmp_path / "none.json")
