import math

import numpy as np
import pytest
import torch

from findings._evidence import digits, evidence_of, states
from findings._nets import assert_raised
from sonde.findings.codes.snd033 import SND033
from sonde.findings.evidence.answers.labels import label_evidence, labels_section, recalls


def mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of digits with the labels of 3 and 8 drawn at random."""
    x, label = digits()
    label = label.clone()
    both = (label == 3) | (label == 8)
    coin = torch.from_numpy(np.random.default_rng(0).integers(0, 2, int(both.sum())))
    label[both] = torch.where(coin == 0, 3, 8)
    return states(x)[0]["blocks.2"], label


def test_two_mixed_classes_are_raised_and_named() -> None:
    x, label = mixed()
    named = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    names = {"label_names": named}
    finding = assert_raised(SND033().check(evidence_of(x, label=label, facts=names)), "warning")
    assert set(finding.classes) == {"three", "eight"}
    assert "'three'" in finding.sentence
    assert "'eight'" in finding.sentence


def test_true_labels_and_a_small_class_are_clear() -> None:
    x, label = digits()
    x = states(x)[0]["blocks.2"]
    assert SND033().check(evidence_of(x, label=label)).state == "clear"
    few = (label != 4) | (torch.cumsum(label == 4, 0) <= 30)
    check = SND033().check(evidence_of(x[few], label=label[few]))
    assert check.state == "clear"
    fewer = (label != 4) | (torch.cumsum(label == 4, 0) <= 12)
    check = SND033().check(evidence_of(x[fewer], label=label[fewer]))
    assert "left out: 1 class" in check.reason


@pytest.mark.truth("Wilson's interval by its quadratic equation")
def test_bounds_are_those_of_wilson() -> None:
    x, label = mixed()
    found = label_evidence(evidence_of(x, label=label))
    recall, low, high, n = recalls(found, found.best, 0.001)[3]
    for bound in (low, high):
        z = abs(recall - bound) / math.sqrt(bound * (1 - bound) / n)
        assert z == pytest.approx(3.0902, abs=1e-3)


def test_the_section_lists_every_class_and_the_confusion() -> None:
    x, label = mixed()
    section = labels_section(evidence_of(x, label=label), "digit")
    assert section is not None
    assert [c["label"] for c in section["classes"]] == [str(k) for k in range(10)]
    assert {section["confusions"][0]["label"], section["confusions"][0]["predicted"]} == {"3", "8"}
