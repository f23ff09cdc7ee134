"""``sonde track``: checkpoints read over data, the record they go into, and what is refused."""

import shutil
from typing import Any

import pytest
import torch

import sonde
from sonde.measure import ParticipationRatio

STEPS = (5, 40)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints: the shipped model, and one whose weights are larger."""
    place = tmp_path_factory.mktemp("runs") / "checkpoints"
    model = sonde.load("sonde:digits", dtype="float32")
    module: Any = model.module
    for step in STEPS:
        module.save_pretrained(place / f"checkpoint-{step}")
        model.processor.save_pretrained(place / f"checkpoint-{step}")
        with torch.no_grad():
            for weight in model.module.parameters():
                weight.mul_(1.5)
    return place


@pytest.mark.slow
def test_checkpoints_become_curves_and_the_record_is_kept(run, checkpoints, tmp_path):
    record, page = tmp_path / "run.track", tmp_path / "track.html"
    words = ("track", checkpoints, "sonde:digits/test", "--methods", "participation_ratio,spectrum")
    reading = ("--sites", "blocks", "--limit", 64, "--record", record)
    ran = run(*words, *reading, "--json", "-o", page)
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["steps"] == list(STEPS)
    last = sonde.load(str(checkpoints / "checkpoint-40"))
    stream = sonde.read(last, "sonde:digits/test", sites="blocks", limit=64)
    own = sonde.fit(ParticipationRatio(), stream, calibrate=0.0, progress=False)
    for curve in found["curves"]:
        if curve["method"] == "spectrum":
            assert curve["low"][1] < curve["values"][1] < curve["high"][1]
            continue
        value = own.result(ParticipationRatio(), curve["site"]).value
        assert curve["values"][1] == pytest.approx(value, rel=1e-6)
        assert curve["values"][0] != curve["values"][1]
    assert page.read_text("utf-8").startswith("<!doctype html>")
    (record / "step-0000000005.sonde").unlink()
    again = run(*words, *reading)
    assert "step 5 (1 of 2)" in again.err
    assert "step 40 (2 of 2)" not in again.err
    assert "step" not in run(*words, *reading, "--quiet").err
    for other, told in (
        ((*words, *reading, "--sites", "blocks.0"), "steps recorded with other sites"),
        ((*words, *reading, "--limit", 60), "steps recorded with other data"),
        ((*words[:4], "spectrum", *reading), "steps recorded with other instruments"),
    ):
        said = run(*other).error()
        assert told in said
        assert "--fresh" in said
    swapped = shutil.copytree(checkpoints, tmp_path / "swapped")
    for a, b in ((5, 40), (40, 5)):
        shutil.copytree(
            checkpoints / f"checkpoint-{a}", swapped / f"checkpoint-{b}", dirs_exist_ok=True
        )
    said = run("track", swapped, *words[2:], *reading).error()
    assert "step 5 in" in said
    assert "other weights" in said
    assert "step 40 (2 of 2)" in run("track", swapped, *words[2:], *reading, "--fresh").err
    shown = run("track", record)
    assert "2 steps, 5 to 40" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_what_cannot_be_tracked_is_refused(run, checkpoints, tmp_path):
    assert "Name the data" in run("track", checkpoints).error()
    assert "expected checkpoints in" in run("track", tmp_path, "sonde:digits/test").error()
    assert "there is no folder" in run("track", tmp_path / "none").error()
    shutil.copytree(checkpoints / "checkpoint-5", tmp_path / "a-5")
    shutil.copytree(checkpoints / "checkpoint-5", tmp_path / "b-5")
    assert "one checkpoint of step 5" in run("track", tmp_path, "sonde:digits/test").error()
