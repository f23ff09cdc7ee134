from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from findings._evidence import evidence_of
from findings._nets import assert_raised
from sonde.findings.codes.snd054 import SND054
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.versus.comparison import VersusEvidence, matched_shift
from sonde.findings.evidence.versus.label_comparison import (
    accuracy,
    label_comparison,
    labels_of_both,
)

NAMES = ("ash", "birch", "cedar")
MIX = np.array([[0.85, 0.1, 0.05], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8]])


def _rows(seed: int, shares: tuple[float, ...], n: int = 900, moved: float = 0.0):
    """Draw rows of classes in these shares, and answers that err as a fixed table says."""
    draw = np.random.default_rng(seed)
    label = draw.choice(len(shares), n, p=shares)
    x = draw.normal(size=(n, 5)) + 1.5 * np.eye(5)[label] + moved
    said = np.array([draw.choice(3, p=MIX[min(k, 2)]) for k in label])
    logits = 4 * np.eye(3)[said] + draw.normal(size=(n, 3)) * 0.01
    return x, torch.tensor(label), torch.tensor(logits, dtype=torch.float32)


def _evidence(side: Any, names: tuple[str, ...] = NAMES) -> Evidence:
    x, label, logits = side
    facts = {"label_names": names, "labels_are_models": True}
    return evidence_of(x, label=label, logits=logits, facts=facts)


def _against(mine: Any, theirs: Any, names: tuple[str, ...] = NAMES) -> Evidence:
    a, b = _evidence(mine), _evidence(theirs, names)
    versus = VersusEvidence({s.schema.key: s for s in b.sites}, b.columns, b.data, {})
    return replace(a, versus=versus)


@pytest.mark.truth("the shares that the rows were drawn with, and scipy's test of the counts")
def test_shares_that_moved_are_told_apart_from_inputs_that_moved() -> None:
    first, second = (0.55, 0.3, 0.15), (0.15, 0.25, 0.6)
    evidence = _against(_rows(0, first), _rows(1, second))
    finding = assert_raised(SND054().check(evidence), "note")
    assert "'cedar' is 1" in finding.sentence or "'ash' is 5" in finding.sentence
    found = label_comparison(evidence)
    assert found is not None
    assert finding.figure.p == pytest.approx(chi2_contingency(np.stack(found.labels))[1])
    assert found.corrected == pytest.approx(np.array(second), abs=0.08)
    right = float((MIX.diagonal() * second).sum())
    assert found.expected == pytest.approx(right, abs=0.04)
    told = labels_of_both(evidence)["accuracy"]["other"]
    assert told["low"] < right < told["high"]
    matched = matched_shift(evidence)
    assert matched is not None
    assert matched["low"] < 0.5 < matched["high"]
    moved = matched_shift(_against(_rows(0, first), _rows(1, second, moved=0.9)))
    assert moved is not None
    assert moved["low"] > 0.6


@pytest.mark.slow
def test_a_class_that_one_side_has_is_new_and_a_healthy_split_is_clear() -> None:
    shares = (0.5, 0.3, 0.2)
    x, label, logits = _rows(3, (*shares[:2], 0.15, 0.05))
    evidence = _against(_rows(2, shares), (x, label, logits), (*NAMES, "yew"))
    finding = assert_raised(SND054().check(evidence), "warning")
    assert finding.classes == ("yew",)
    assert "labels that DATA does not have: yew" in finding.sentence
    assert labels_of_both(evidence)["new"] == {"data": [], "other": ["yew"]}
    found = accuracy(evidence, of_other=True)
    assert found is not None
    said = logits.argmax(1)
    assert found["value"] == pytest.approx(float((said == label).double().mean()))
    for seed in range(10):
        twin = _against(_rows(10 + seed, shares), _rows(50 + seed, shares))
        assert SND054().check(twin).state == "clear"


def test_too_few_labels_withhold_and_no_labels_do_not_apply() -> None:
    evidence = _against(_rows(0, (0.5, 0.3, 0.2)), _rows(1, (0.2, 0.3, 0.5), n=30))
    check = SND054().check(evidence)
    assert check.state == "withheld"
    assert check.reason == "needs 50 labels on each side, 30 present"
    assert SND054().check(_evidence(_rows(0, (0.5, 0.3, 0.2)))).state == "not_applicable"


@pytest.mark.slow
def test_a_second_data_set_may_have_a_class_that_the_model_lacks(tmp_path, monkeypatch) -> None:
    from cli_case import run_words

    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name, new in (("a", "one"), ("b", "six")):
        labels = ["zero" if i % 3 else ("one" if i % 2 else new) for i in range(120)]
        rows = [",".join([*(f"{v:.4f}" for v in draw.normal(size=4)), label]) for label in labels]
        (tmp_path / f"{name}.csv").write_text("p,q,r,s,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "four.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), "
        "nn.Linear(6, 2)).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("scan", "four:net", "a.csv", "--classes", "zero,one", "--only", "SND054")
    ran = run_words(*words, "--versus", "b.csv", "--json")
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["versus"]["labels"]["new"] == {"data": [], "other": ["six"]}
    assert found["findings"][0]["code"] == "SND054"
    refused = run_words("scan", "four:net", "b.csv", "--classes", "zero,one")
    assert refused.code == 2
    assert "expected labels among the classes zero, one, got six" in refused.err
