import numpy as np
import pytest
import torch

from sonde import InputError
from sonde.measure import emergence


def rows(n=400, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3))


@pytest.mark.truth("adjusted R2 by numpy's least squares")
def test_shares_of_each_checkpoint():
    end = rows()
    noise = np.random.default_rng(1).standard_normal(end.shape)
    early = {10: noise, 200: end + 0.7 * noise, 40: 0.3 * end + noise}
    found = emergence({**early, 1000: end}, features="units")
    assert found.steps.tolist() == [10, 40, 200]
    for row, step in zip(found.r2.tolist(), (10, 40, 200), strict=True):
        x = early[step] - early[step].mean(0)
        goal = end - end.mean(0)
        left = goal - x @ np.linalg.lstsq(x, goal, rcond=None)[0]
        share = 1 - (left**2).sum(0) / (goal**2).sum(0) * 399 / 396
        assert row == pytest.approx(share.tolist(), rel=1e-9)
    want = 1 - found.r2.clamp(min=0).mean(0)
    assert found.lateness.tolist() == pytest.approx(want.tolist())


@pytest.mark.truth("features planted at known steps")
def test_features_emerge_where_they_were_planted():
    end = torch.from_numpy(rows(seed=2)) * torch.tensor([3.0, 2.0, 1.0])
    at = {step: end[:, :units] for step, units in ((5, 1), (50, 2), (500, 3))}
    found = emergence({**at, 5000: end}, k=3)
    assert found.step.tolist() == [5, 50, 500]
    assert found.lateness.tolist() == pytest.approx([0.0, 1 / 3, 2 / 3], abs=0.02)
    two = emergence({50: end[:, :2], 5000: end}, features="units")
    assert two.step.tolist() == [50, 50, 5000]
    assert two.lateness.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=0.02)


def test_one_checkpoint_is_too_few():
    with pytest.raises(InputError, match="emergence: expected at least two checkpoints, got 1"):
        emergence({0: rows()})
