"""A check of a state file finds every damage, and tells it from a version or a method unknown."""

import json
import random
from pathlib import Path

import pytest

from run_case import stream
from sonde.core.errors import StoreError
from sonde.detect import Mahalanobis
from sonde.engine.running import Running
from sonde.files.state_file import read_header, write_state
from sonde.run.comparing.verify_state import verify_state
from sonde.run.fitting.fit import fit
from sonde.stats import Moments


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("state") / "probe.sonde"
    fit([Mahalanobis()], stream(300), unit_size=50, progress=False).save(path)
    return path


def header_with(probe: Path, tmp_path: Path, **changes) -> Path:
    """Write a file whose hash is right and whose header differs."""
    path = tmp_path / "other.sonde"
    write_state(path, {**read_header(probe), **changes}, {})
    return path


@pytest.mark.truth("what was written")
def test_a_sound_bundle_is_sound(probe):
    found = verify_state(probe)
    assert found.is_sound
    assert found.kind == "fitted state"
    assert found.checked["n_bytes"] == probe.stat().st_size
    assert found.checked["n_results"] == 1
    assert not found.notes


def test_any_flipped_bit_is_found(probe, tmp_path):
    raw = probe.read_bytes()
    rng = random.Random(2)
    path = tmp_path / "a.sonde"
    for at in {0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(120))}:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])
        try:
            assert not verify_state(path).is_sound, at
        except StoreError:
            assert b"version" in raw[max(0, at - 14) : at]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_found(probe, tmp_path, keep):
    path = tmp_path / "a.sonde"
    path.write_bytes(probe.read_bytes()[:keep])
    found = verify_state(path)
    assert len(found.faults) == 1
    assert found.faults[0].what.startswith("is damaged: ")
    assert found.faults[0].removes == ()


def test_units_that_count_twice_are_found(probe, tmp_path):
    units = read_header(probe)["units"]
    twice = [{**units[0], "units": [[0, 3], [2, 5]]}]
    found = verify_state(header_with(probe, tmp_path, units=twice))
    assert "a unit is counted twice" in [f.what for f in found.faults]
    found = verify_state(header_with(probe, tmp_path, units=[{**units[0], "units": [[5, 2]]}]))
    assert "an interval of units ends before it begins" in [f.what for f in found.faults]
    found = verify_state(header_with(probe, tmp_path, units=3))
    assert any("not listed as intervals" in f.what for f in found.faults)


def test_states_that_do_not_fit_their_methods_are_found(probe, tmp_path):
    found = verify_state(header_with(probe, tmp_path))
    assert any("holds other states" in f.what for f in found.faults)


def test_a_method_of_ones_own_is_no_fault(probe, tmp_path):
    entry = {**read_header(probe)["entries"][0], "instrument": "my_method"}
    found = verify_state(header_with(probe, tmp_path, entries=[entry]))
    assert found.is_sound
    assert "my_method" in found.notes[0]


def test_a_later_version_is_not_judged(probe, tmp_path):
    head = read_header(probe)
    path = header_with(probe, tmp_path, version=3)
    with pytest.raises(StoreError, match=r"a later sonde \(version 3"):
        verify_state(path)
    inner = json.dumps(json.dumps({"format": "sonde-state", "version": 9, "header": head}))
    text = f'{{"__metadata__":{{"sonde":{inner}}}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(StoreError, match=r"a later sonde \(version 9"):
        verify_state(path)


def test_states_of_other_kinds_are_named(tmp_path):
    running = Running(Moments())
    for batch in stream(50):
        running.update(next(iter(batch.rows.values())))
    running.save(tmp_path / "a.sonde")
    found = verify_state(tmp_path / "a.sonde")
    assert (found.kind, found.is_sound) == ("running state", True)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        verify_state(tmp_path / "none.sonde")
