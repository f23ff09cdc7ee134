"""The paired test of layers: a difference that separate error bars hide, and rows in groups."""

import numpy as np
import pytest
import torch

from findings._evidence import evidence_of
from sonde.core.paired_gains import sign_test
from sonde.findings.evidence.answers.labels import against_best, label_evidence


def sites(n: int, worse: float, seed: int):
    """Return labels and two sites: 'near' contradicts the label of more rows than 'far'."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, n)
    hard = draw.random(n) < 0.15  # wrong at both sites
    far = np.where(hard, 1 - label, label)
    also = draw.random(n) < worse
    near = np.where(also & ~hard, 1 - label, far)
    states = [4.0 * np.eye(2)[y] + 0.1 * draw.normal(size=(n, 2)) for y in (near, far)]
    return label, dict(zip(("near", "far"), map(torch.from_numpy, states), strict=True))


@pytest.mark.truth("rows that were exchanged at one of two sites, counted by hand")
def test_a_small_difference_on_the_same_rows_is_significant() -> None:
    label, x = sites(600, 0.03, 1)
    found = label_evidence(evidence_of(x, label=torch.from_numpy(label)))
    near, far = against_best(found)
    hits = [site.hit for site in found.sites]
    gains = int(((hits[1] == 1) & (hits[0] == 0)).sum())
    losses = int(((hits[1] == 0) & (hits[0] == 1)).sum())
    assert (near.gains, near.losses) == (gains, losses)
    assert near.p == pytest.approx(sign_test(gains, losses))
    assert near.p < 0.01
    assert far.p == 1
    overlap = (
        found.sites[0].accuracy + found.sites[0].se > found.sites[1].accuracy - found.sites[1].se
    )
    assert overlap  # error bars of the two sites alone would not show it


def test_rows_of_a_person_are_no_evidence_of_their_own() -> None:
    label, x = sites(60, 0.05, 2)
    noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) / 50
    many = {k: v.repeat_interleave(10, 0) + noise for k, v in x.items()}
    groups = [f"person {i // 10}" for i in range(600)]
    labels = torch.from_numpy(label).repeat_interleave(10)
    alone = against_best(label_evidence(evidence_of(many, label=labels)))[0]
    grouped = against_best(label_evidence(evidence_of(many, label=labels, group=groups)))[0]
    assert alone.p < 0.01 < grouped.p
    assert grouped.gains + grouped.losses <= 60
