import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd062 import SND062
from sonde.findings.rule import Check

OWN = {"labels_are_models": True}


def ended(label: Tensor, wrong: Tensor) -> Check:
    """Check random states whose answers are wrong at some rows."""
    answer = torch.where(wrong, (label + 1) % 4, label)
    x = torch.randn(len(label), 8, generator=torch.Generator().manual_seed(0)) + label[:, None]
    logits = 9.0 * one_hot(answer, 4)
    return SND062().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))


@pytest.mark.truth("shares counted by numpy")
def test_a_rare_class_that_is_wrong_is_told_with_the_mean_over_classes() -> None:
    draw = np.random.default_rng(0)
    label = torch.from_numpy(draw.choice(4, 1200, p=[0.4, 0.3, 0.25, 0.05]))
    bad = torch.from_numpy(draw.random(1200)) < torch.where(label == 3, 0.6, 0.05)
    finding = assert_raised(ended(label, bad), "warning")
    assert finding.classes == ("3",)
    assert sorted(finding.examples) == torch.nonzero(bad & (label == 3)).flatten().tolist()
    rare = label.numpy() == 3
    gap = bad.numpy()[rare].mean() - bad.numpy()[~rare].mean()
    assert finding.figure.value == pytest.approx(gap, abs=1e-9)
    mixed = bad[torch.from_numpy(draw.permutation(1200))]
    assert_clear(ended(label, mixed))


def test_balanced_classes_and_few_rare_rows_are_not_judged() -> None:
    label = torch.arange(400) % 4
    assert ended(label, label == 3).state == "not_applicable"
    few = torch.cat([label % 3, torch.full((8,), 3)])
    assert ended(few, few == 3).state == "withheld"
