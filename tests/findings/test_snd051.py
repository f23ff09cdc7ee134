from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS
from sklearn.metrics import roc_auc_score

from findings._evidence import digits, evidence_of, shuffled, states, versus_of
from findings._nets import assert_raised
from sonde.findings.codes.snd051 import SND051
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.versus.comparison import VersusEvidence, compare, versus_section


def halves(seed: int = 0, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    x, order = digits()[0], shuffled(1797, seed)
    return x[order[:n]], x[order[n : 2 * n]]


def shifted(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 8, 8).roll(1, dims=2).reshape(-1, 64)


def without_scorers(x: Any, y: Any, **known: Any) -> Evidence:
    """Return evidence for the comparison alone, which needs no detectors."""
    mine, theirs = evidence_of(x, **known), evidence_of(y)
    versus = VersusEvidence(
        {s.schema.key: s for s in theirs.sites}, theirs.columns, theirs.data, {}
    )
    return replace(mine, versus=versus)


def test_shifted_images_are_told_apart_and_another_half_is_not() -> None:
    a, b = halves()
    evidence = without_scorers(states(a)[0], states(shifted(b))[0])
    check = SND051().check(evidence)
    finding = assert_raised(check, "warning")
    assert finding.figure.value > 0.9
    section = versus_section(evidence)
    assert section is not None
    assert section["best"] in {"blocks.0", "blocks.1", "blocks.2"}
    assert [s["site"] for s in section["sites"]] == ["blocks.0", "blocks.1", "blocks.2"]
    for seed in range(2):
        a, b = halves(seed)
        evidence = without_scorers(states(a)[0], states(b)[0])
        assert SND051().check(evidence).state == "clear"


@pytest.mark.slow
def test_level_of_the_test_on_equal_distributions() -> None:
    small = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        evidence = without_scorers(rng.normal(size=(100, 6)), rng.normal(size=(100, 6)))
        found = compare(evidence)
        assert found is not None
        assert SND051().check(evidence).state == "clear"
        small += found.sites[0].p < 0.05
    assert small <= 11  # with probability 99.6 % at a level of 5 %


def test_length_that_explains_it_is_named() -> None:
    rng = np.random.default_rng(0)
    short, long = rng.integers(5, 20, 300), rng.integers(18, 40, 300)
    a, b = (np.c_[n / 10, rng.normal(size=(300, 3))] for n in (short, long))
    check = SND051().check(
        versus_of(
            a,
            b,
            columns={"length": torch.from_numpy(short)},
            other={"columns": {"length": torch.from_numpy(long)}},
        )
    )
    assert check.finding is not None
    assert "length explains the difference" in check.finding.sentence


@pytest.mark.truth("scikit-learn's AUROC of the direction, solved in numpy")
def test_auroc_is_that_of_the_direction_of_the_first_half() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(300, 4)), rng.normal(0.3, 1.0, size=(260, 4))
    evidence = without_scorers(a, b)
    found = compare(evidence)
    assert found is not None
    mine, theirs = shared_rows(evidence), shared_rows(evidence.versus.other)
    x, y = mine.x(0).numpy(), theirs.x(0).numpy()
    p, q = (np.mod(r.group.numpy(), 2) == 0 for r in (mine, theirs))
    residual = np.concatenate([x[p] - x[p].mean(0), y[q] - y[q].mean(0)])
    covariance = OAS(assume_centered=True).fit(residual).covariance_
    direction = np.linalg.solve(covariance, y[q].mean(0) - x[p].mean(0))
    scores = np.concatenate([x[~p], y[~q]]) @ direction
    truth = roc_auc_score(np.r_[np.zeros((~p).sum()), np.ones((~q).sum())], scores)
    assert found.sites[0].auroc == pytest.approx(truth, abs=1e-12)


def test_few_groups_are_withheld_and_no_other_does_not_apply() -> None:
    a, b = halves()
    assert SND051().check(without_scorers(a[:40], b)).state == "withheld"
    assert SND051().check(evidence_of(a)).state == "not_applicable"
