"""A weak group that a scan found is known again in new inputs: by a column, and by the states."""

import json

import pyarrow as pa
import pytest
import torch

import sonde
from cli_case import run_words
from findings import _evidence as arrays
from sonde.core.errors import StateError
from sonde.findings.evidence.inputs.weak_groups import weak_rows
from sonde.findings.evidence.shared_rows import ids_at
from sonde.findings.settings import ScanSettings
from sonde.findings.weak_file import weak_groups_of
from sonde.metrics._conditions import Beyond, Equals, Nearest
from sonde.report.scan import run_scan
from sonde.run.scoring.weak_file import KnownGroup, WeakGroups, with_groups

DIGITS = "sonde:digits"


def write(path, rows, style, named=True):
    """Digits as JSONL; those of the style are white on black, and may name their sensor."""
    x, label = arrays.digits()
    order = arrays.shuffled(len(x), 3)
    lines = []
    for i, k in enumerate(order[rows].tolist()):
        image = 1 - x[k] if i in style else x[k]
        row = {"id": f"r{i}", "x": (2 * image - 1).reshape(1, 8, 8).tolist(), "gain": i}
        row |= {"sensor": "B" if i in style else "A"} if named else {}
        lines.append(row | {"label": int(label[k])})
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan's file of groups by sensor and by states, a probe, new inputs."""
    place = tmp_path_factory.mktemp("weak")
    write(place / "old.jsonl", slice(0, 900), set(range(0, 900, 12)))
    write(place / "plain.jsonl", slice(0, 900), set(range(0, 900, 12)), named=False)
    write(place / "new.jsonl", slice(1000, 1200), set(range(0, 200, 5)))
    old = (DIGITS, place / "old.jsonl", "--ignore-columns", "gain")
    ran = run_words("scan", *old, "--only", "SND061", "--groups", place / "groups.sonde")
    assert ran.code == 0, ran.err
    assert "weak group" in ran.err
    assert run_words("fit", "knn(k=5)", *old, "-o", place / "p.sonde").code == 0
    return place


@pytest.mark.slow
@pytest.mark.truth("planted: every fifth new input is of the style")
def test_new_inputs_of_the_planted_group_are_told(folder):
    words = ("score", folder / "p.sonde", DIGITS, folder / "new.jsonl")
    words += ("--group", folder / "groups.sonde")
    ran = run_words(*words, "--json")
    assert ran.code == 0, ran.err
    lines = ran.json()
    planted = {f"r{i}" for i in range(0, 200, 5)}
    mine = {line["id"] for line in lines if line["groups"]}
    assert len(mine & planted) >= 0.95 * len(planted)
    assert len(mine - planted) <= 0.02 * len(lines)
    assert all(line["group_accuracy"] < 0.6 for line in lines if line["groups"])
    said = " ".join(run_words(*words).out.split())
    assert "weak groups: 1. sensor = B: the model is correct on" in said
    assert "40 of 200 inputs: r0" in said
    assert "since --group reports one line for each input" in run_words(*words, "--each").error()
    line = run_words(*words[:-1], folder / "p.sonde").error()
    assert "expected a file of `sonde scan --groups FILE`" in line


@pytest.mark.slow
@pytest.mark.truth("the scan's own members; planted style and gain; labels; the model's answers")
def test_clusters_tails_labels_and_answers_are_known_again(folder, tmp_path):
    settings = ScanSettings(progress=False, only=("SND061",))
    model = sonde.load(DIGITS)
    scanned, _ = run_scan(
        model, str(folder / "plain.jsonl"), settings=settings, ignore_columns=["gain"]
    )
    (found, *_) = weak_groups_of(scanned).groups
    assert any(isinstance(c, Nearest) for c in found.conditions), found.text
    conditions = (
        Beyond("gain", 150.0, True),
        Equals("label", 3, "label"),
        Equals("answer", 3, "answer"),
        Equals("camera", "C"),
    )
    groups = [found, *(KnownGroup(c.text, (c,), {"accuracy": 0.5}) for c in conditions)]
    WeakGroups.of(scanned.stream, groups).save(tmp_path / "g.sonde")
    weak = WeakGroups.load(tmp_path / "g.sonde")
    stream = weak.open(model, str(folder / "new.jsonl"))
    members = {name: holds for (name, _), holds in weak.members(stream).items()}
    rows = [json.loads(text) for text in (folder / "new.jsonl").read_text().splitlines()]
    style, gain, label, answer, camera = zip(*(members[r["id"]] for r in rows), strict=True)
    assert sum(s == (r["sensor"] == "B") for s, r in zip(style, rows, strict=True)) >= 180
    again = weak.members(weak.open(model, str(folder / "plain.jsonl")))
    seen = weak_rows(scanned.evidence)
    assert seen is not None
    there = ids_at(scanned.evidence, seen.where[seen.groups[0].rows].tolist())
    assert {name for (name, _), holds in again.items() if holds[0]} == set(there)
    assert list(gain) == [r["gain"] >= 150 for r in rows]
    assert list(label) == [r["label"] == 3 for r in rows]
    with torch.no_grad():
        mine = model.module(torch.tensor([r["x"] for r in rows])).logits.argmax(1)
    assert list(answer) == (mine == 3).tolist()
    assert set(camera) == {None}
    table = pa.table({"id": ["r0", "none"], "row": [0, 7]})
    assert with_groups(table, weak, stream)["groups"].to_pylist()[1] is None
    other = WeakGroups({**weak.header, "model": {**weak.header["model"], "model": "x"}}, ())
    with pytest.raises(StateError, match="another model"):
        other.members(stream)
