import numpy as np
import pytest
import torch
from scipy.stats import norm

from findings._evidence import digits, evidence_of
from findings._nets import assert_raised
from sonde.findings.codes.snd035 import SND035, explained_margin
from sonde.stats.auroc_bounds import auroc_bounds


def lengths(label: torch.Tensor, longer: int | None, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    length = rng.lognormal(4.0, 0.4, len(label))
    length[(label == -9 if longer is None else label == longer).numpy()] *= 2
    return torch.from_numpy(length).long()


def test_a_class_of_double_length_is_raised_and_shuffled_lengths_are_not() -> None:
    x, label = digits()
    length = lengths(label, 3)
    finding = assert_raised(
        SND035().check(evidence_of(x, label=label, columns={"length": length})), "warning"
    )
    assert finding.classes == ("3",)
    assert "number of tokens" in finding.sentence
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(length)))
    check = SND035().check(evidence_of(x, label=label, columns={"length": length[order]}))
    assert check.state == "clear"
    assert len(check.tables["nuisances"]) == 10


def test_constant_or_missing_nuisances_do_not_apply() -> None:
    x, label = digits()
    same = {"length": torch.full((len(label),), 5)}
    assert SND035().check(evidence_of(x, label=label, columns=same)).state == "not_applicable"
    assert SND035().check(evidence_of(x, label=label)).state == "not_applicable"


def test_the_share_of_the_margin_is_said_where_the_classes_are_the_models() -> None:
    x, label = digits()
    length = lengths(label, 3)
    own = {"labels_are_models": True}
    other = torch.from_numpy(np.random.default_rng(2).permutation(len(label)))
    is_long = length.double() > (length[label == 3].median() + length[label != 3].median()) / 2
    misled = torch.where(is_long, 3, torch.where(label == 3, 9, label))  # follows the length
    cases = ((misled, length, "warning", "9.7 %"), (label, length[other], "note", "0."),
             (label, length, "note", "100 %"))  # fmt: skip
    for answer, used, level, said in cases:
        logits = torch.nn.functional.one_hot(answer, 10).double() * (1 + used[:, None] / 50.0)
        evidence = evidence_of(x, label=label, logits=logits, columns={"length": length}, facts=own)
        finding = assert_raised(SND035().check(evidence), level)
        assert f"explains {said}" in finding.sentence


@pytest.mark.truth("squared partial correlation from least squares with one constant per class")
def test_explained_margin_equals_a_regression_with_class_constants() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 4))
    nuisance = rng.normal(size=200) + label + logits[:, 0]
    own = logits[np.arange(200), label]
    rest = logits.copy()
    rest[np.arange(200), label] = -np.inf
    margin = own - rest.max(1)
    constants = np.eye(4)[label]
    without = np.linalg.lstsq(constants, margin, rcond=None)[1][0]
    within = np.linalg.lstsq(np.c_[constants, nuisance], margin, rcond=None)[1][0]
    value = explained_margin(*map(torch.from_numpy, (logits, label, nuisance)))
    assert value == pytest.approx(1 - within / without, rel=1e-9)


@pytest.mark.truth("coverage over simulated normal scores")
@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_bounds_cover_the_true_auroc(truth: float) -> None:
    rng, gap = np.random.default_rng(0), np.sqrt(2) * norm.ppf(truth)
    missed = 0
    for _ in range(600):
        a, b = rng.normal(size=(30, 1)), rng.normal(gap, 1, size=(60, 1))
        value = float((b > a.T).mean())
        low, high = auroc_bounds(value, 30, 60, 0.025)
        missed += not low <= truth <= high
    assert 0.02 <= missed / 600 <= 0.08


def test_bounds_have_a_width_at_complete_separation() -> None:
    low, high = auroc_bounds(1.0, 30, 30, 0.001)
    assert high == 1.0
    assert 0.7 < low < 0.95


def test_brightness_is_a_note_where_nobody_knows_whether_the_model_uses_it() -> None:
    x, label = digits()
    bright = torch.rand(len(label)) / 4 + (label == 3) / 2
    evidence = evidence_of(x, label=label, columns={"brightness": bright})
    assert_raised(SND035().check(evidence), "note")
