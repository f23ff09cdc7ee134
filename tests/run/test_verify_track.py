"""A check of the steps of a training finds what is damaged, left over or of another kind."""

import pytest

from run_case import stream
from sonde.core.errors import InputError
from sonde.files.durable import TEMPORARY
from sonde.measure import Covariance, ParticipationRatio
from sonde.run.comparing.verify_track import is_track, verify_track
from sonde.run.fitting.fit import fit
from sonde.run.training.track import Track


@pytest.fixture
def track(tmp_path) -> Track:
    track = Track(tmp_path / "run.track")
    for step in (0, 5, 10):
        track.add(step, fit(Covariance(), stream(60), progress=False))
    return track


@pytest.mark.truth("the sizes on the disk")
def test_sound_steps_are_counted(track):
    found = verify_track(track.directory)
    sizes = [track.file(step).stat().st_size for step in track.steps]
    assert (found.kind, found.faults) == ("track of a training", ())
    assert found.checked == {"n_files": 3, "n_bytes": sum(sizes), "n_results": 3}


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:-1] + b"\x55", lambda _: b""]
)
def test_a_damaged_step_is_named(track, damage):
    path = track.file(5)
    path.write_bytes(damage(path.read_bytes()))
    (fault,) = verify_track(track.directory).faults
    assert (fault.path, fault.removes) == (path, ())
    assert "damaged" in fault.what


def test_a_step_of_another_kind_is_named(track):
    fit(ParticipationRatio(), stream(60), progress=False).save(track.file(5))
    (fault,) = verify_track(track.directory).faults
    assert fault.path == track.file(5)
    assert "step-0000000000.sonde" in fault.what
    assert "entries" in fault.what


def test_what_interrupted_writes_left_is_listed(track):
    left = track.file(15).with_name(f"step-0000000015.sonde{TEMPORARY}1")
    left.write_bytes(b"")
    found = verify_track(track.directory)
    assert (found.is_sound, found.leftovers) == (True, (left,))


def test_a_folder_without_steps_is_no_track(tmp_path):
    assert not is_track(tmp_path)
    with pytest.raises(InputError, match="contains no recorded steps of a training"):
        verify_track(tmp_path)
