"""``sonde edit forget``: a class is gone from the model that is written, and comes back by undo."""

import json

import pytest
import torch

import sonde
from sonde.data import open_inputs

DATA = ["--forget", "sonde:digits", "--of-class", "3"]


def right(model, data):
    """Return the share of right answers."""
    hits = n = 0
    for batch in data.batches(0, len(data)):
        with torch.no_grad():
            said = model.module(*batch.args, **batch.kwargs).logits.argmax(1)
        hits, n = hits + int((said == batch.label).sum()), n + len(batch)
    return hits / n


@pytest.mark.slow
def test_a_class_is_forgotten_on_disk_and_the_report_says_so(run, tmp_path):
    new, page = tmp_path / "NEW", tmp_path / "page.json"
    ran = run(
        *("edit", "forget", "sonde:digits", *DATA, "--held", "sonde:digits"),
        *("-o", str(new), "--report", str(page), "--quiet", "--force"),
    )
    assert ran.code == 0, ran.err
    model = sonde.load(str(new))
    test = open_inputs(model, "sonde:digits/test")
    assert right(model, test.of_class("3")) < 0.1
    assert right(model, test.of_class("3", without=True)) > 0.93
    found = json.loads(page.read_text())
    accuracy, attack = found["tables"]
    assert accuracy["rows"][0][1] > 0.95 > 0.1 > accuracy["rows"][1][1]
    assert 0.3 < attack["rows"][1][1] < 0.7
    assert found["judgement"]["effect"]["value"] > 3


@pytest.mark.slow
def test_bad_input_is_told_in_one_line_and_nothing_is_written(run, tmp_path):
    lone = ["edit", "forget", "sonde:digits", *DATA[:2], "-o", str(tmp_path / "NEW")]
    assert "expected --retain" in run(*lone).error()
    words = ["edit", "forget", "sonde:digits", *DATA, "-o", str(tmp_path / "NEW")]
    assert "got '33'" in run(*words[:-3], "33", *words[-2:]).error()
    assert (
        "--alpha: the method random has no parameter alpha" in run(*words, "--alpha", "2").error()
    )
    said = run(*words, "--method", "dampen", "--alpha", "50").error()
    assert "expected alpha below 9.8" in said
    assert not list(tmp_path.iterdir())
