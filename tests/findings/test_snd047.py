import numpy as np
import pytest
import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd047 import SND047
from sonde.findings.evidence.inputs.row_order import of_neighbours, of_tenths


@pytest.mark.truth(
    "between-group sums of squares by numpy; the largest of three chi-squared by simulation"
)
def test_share_between_tenths() -> None:
    x = np.random.default_rng(0).normal(size=(500, 3))
    x[250:, 0] += 1.0
    parts = [x[i : i + 50].mean(0) for i in range(0, 500, 50)]
    truth = (50 * np.square(np.array(parts) - x.mean(0)).sum(0) / x.var(0) / 500).max()
    found = of_tenths(torch.from_numpy(x))
    assert found.value == pytest.approx(truth, rel=1e-9)
    null = np.random.default_rng(1).chisquare(9, (20_000, 3)).max(1).mean() / 500
    assert found.null == pytest.approx(null, rel=0.1)
    assert found.p < 1e-6


@pytest.mark.truth("(n - 1) of n - 1 neighbours of sorted labels but one; sum of squared shares")
def test_share_of_equal_neighbours() -> None:
    label = torch.arange(300) // 150
    found = of_neighbours(label)
    assert found.value == pytest.approx(298 / 299)
    assert found.null == pytest.approx(0.5, abs=0.01)


def test_labels_and_states_in_the_order_of_the_file() -> None:
    x, label = arrays.digits()
    x, label = x[:600], label[:600]
    order = torch.argsort(label, stable=True)
    check = SND047().check(arrays.evidence_of(x[order], label=label[order]))
    finding = assert_raised(check, "note")
    assert "Of 10 classes 9 would be on one side" in finding.sentence
    of_folders = arrays.evidence_of(x[order], label=label[order], facts={"by_name": True})
    assert_clear(SND047().check(of_folders))
    order = arrays.shuffled(600, 3)
    assert_clear(SND047().check(arrays.evidence_of(x[order], label=label[order])))
    drift = x[order] + torch.linspace(0, 2, 600)[:, None]
    finding = assert_raised(SND047().check(arrays.evidence_of(drift, label=label[order])), "note")
    assert finding.sentence.startswith("States at x drift")


@pytest.mark.slow
@pytest.mark.truth("rows in random order, and the same rows sorted")
def test_a_hundred_rows_are_enough_and_rare_classes_are_no_reason() -> None:
    """A normal law gives one random order of a rare class in a hundred a p below 1 in 10,000."""
    draw = torch.Generator().manual_seed(3)
    p = []
    for seed in range(400):
        rare = (torch.rand(100, generator=draw) < 0.05).long()
        p.append(of_neighbours(rare, seed=seed).p)
    assert sum(one < 1e-3 for one in p) <= 6
    assert sum(one < 0.05 for one in p) <= 30
    x = torch.randn(100, 6, generator=draw)
    assert_clear(SND047().check(arrays.evidence_of(x)))
    drift = x + 3 * torch.linspace(0, 1, 100)[:, None]
    assert_raised(SND047().check(arrays.evidence_of(drift)), "note")
