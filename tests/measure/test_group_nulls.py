"""Nulls of measures from sums, where rows come in groups."""

import numpy as np
import pytest
import torch

from sonde import measure
from sonde.engine.independent_rows import independent_rows

ROWS, DIMS = [10, 22, 16, 7, 25] * 13, (5, 7)
GROUP = np.repeat(np.arange(len(ROWS)), ROWS)
FUNCTIONS = {
    "cca": measure.cca,
    "svcca": measure.svcca,
    "pwcca": measure.pwcca,
    "procrustes": measure.procrustes,
    "regression": measure.regression,
    "gulp": measure.gulp,
    "correlation_match": measure.correlation_match,
    "mutual_information": measure.mutual_information,
    "cka": lambda x, y, group: measure.CKA().fit(x, y=y, group=group),
    "kernel_cka": lambda x, y, group: measure.KernelCKA(2.0, m=16).fit(x, y=y, group=group),
    "biased cka": lambda x, y, group: measure.cka(x, y, group, debiased=False),
}


ONE_SITE = {
    "anisotropy": (),
    "class_separability": ("label",),
    "coding_rate": (),
    "effective_rank": (),
    "entropy_rank": (),
    "matrix_entropy": (),
    "neural_collapse": ("label",),
    "participation_ratio": (),
    "rate_reduction": ("label",),
    "stable_rank": (),
    "total_correlation": (),
}


def unrelated(seed):
    """Two sites of rows that share most of what they are with the rest of their group."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((len(ROWS), d))[GROUP] + 0.5 * rng.standard_normal((len(GROUP), d))
        for d in DIMS
    ]


@pytest.mark.truth("fresh draws of unrelated groups of unequal sizes")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_null_is_what_unrelated_groups_give(name):
    found = [FUNCTIONS[name](*unrelated(seed), group=GROUP) for seed in range(8)]
    value, null = (np.array([float(torch.as_tensor(v)) for v in vs])
                   for vs in ([r.value for r in found], [r.null for r in found]))  # fmt: skip
    spread = value.std(ddof=1)
    assert abs((value - null).mean()) < 1.5 * spread


@pytest.mark.truth("fresh draws of white groups of unequal sizes, each of one class")
@pytest.mark.parametrize("name", ONE_SITE)
def test_the_null_of_one_site_is_what_white_groups_give(name):
    values, nulls = [], []
    for seed in range(8):
        x, label = unrelated(seed)[0], np.random.default_rng(seed + 50).integers(3, size=len(ROWS))
        columns = {"label": label[GROUP]} if ONE_SITE[name] else {}
        found = getattr(measure, name)(x, group=GROUP, **columns)
        values.append(float(torch.as_tensor(found.value)))
        nulls.append(found.null)
    assert abs(np.mean(values) - np.mean(nulls)) < 2.5 * np.std(values, ddof=1)


@pytest.mark.truth("Kish's design effect with a share of 0.8 and 0.5 within groups of 6")
def test_rows_of_groups_count_as_fewer():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4000), 6)
    x, y = (
        np.sqrt(share) * rng.standard_normal((4000, 3))[group]
        + np.sqrt(1 - share) * rng.standard_normal((24000, 3))
        for share in (0.8, 0.5)
    )
    sides = torch.tensor(x), torch.tensor(y)
    want = 24000 / (1 + 5 * 0.8 * 0.5)
    found = independent_rows(sides, torch.tensor(group), 24000)
    assert found == pytest.approx(want, rel=0.03)
    drawn = torch.randperm(24000, generator=torch.Generator().manual_seed(0))[:8000]
    some = [side[drawn] for side in sides]
    found = independent_rows(some, torch.tensor(group)[drawn], 24000, 24000)
    assert found == pytest.approx(want, rel=0.06)
