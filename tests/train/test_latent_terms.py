"""Parts of the rate of a code: normals in closed form, and an identity of the parts."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.train import LatentTerms


def code(n, rho=0.5, variance=0.25, seed=0):
    """Return means and log-variances whose aggregate is a normal of unit variances and ``rho``."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64) - variance * torch.eye(2)
    half = torch.linalg.cholesky(spread)
    mean = torch.randn(n, 2, generator=draw, dtype=torch.float64) @ half.T
    return mean, torch.full_like(mean, math.log(variance))


@pytest.mark.truth("closed form of normals: KL 2 ln 2 = MI 1.242453 + TC 0.143841")
def test_parts_of_a_normal_code():
    kl = -math.log(0.25)
    tc = -math.log(1 - 0.5**2) / 2
    for estimator in ("mixture", "leave_one_out"):
        loss = LatentTerms(estimator=estimator)
        codes = [code(512, seed=9 + seed) for seed in range(6)]
        found = [{k: float(v) for k, v in loss.parts(*one).items()} for one in codes]
        mean = {k: sum(f[k] for f in found) / 6 for k in found[0]}
        assert mean["mi"] == pytest.approx(kl - tc, abs=0.06)
        assert mean["tc"] == pytest.approx(tc, abs=0.03)
        assert mean["each"] == pytest.approx(0, abs=0.04)


@pytest.mark.truth("identity: the parts add up to the divergence of the same draws")
@pytest.mark.parametrize("groups", [None, (1, 2), (3,)])
@pytest.mark.parametrize("estimator", ["mixture", "leave_one_out"])
def test_the_parts_add_up(groups, estimator):
    draw = torch.Generator().manual_seed(1)
    x, y, noise = torch.randn(3, 9, 3, generator=draw, dtype=torch.float64)
    y = y - 1
    z = x + (y / 2).exp() * noise
    q = torch.distributions.Normal(x, (y / 2).exp()).log_prob(z).sum(1)
    p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    made = LatentTerms(groups=groups, estimator=estimator)
    assert float(made(x, y, z)) == pytest.approx(float((q - p).mean()), rel=1e-12)
    mim = LatentTerms(0.0, 0.0, 0.0, -0.5, 0.5)
    assert float(mim(x, y, z)) == pytest.approx(float(-(q + p).mean() / 2), rel=1e-12)
    others = [[j for j in range(9) if estimator == "mixture" or j != i] for i in range(9)]
    normals = torch.distributions.Normal(x, (y / 2).exp())
    total = sum(
        float(normals.log_prob(z[i]).sum(1)[own].exp().mean().log()) for i, own in enumerate(others)
    )
    assert float(made.parts(x, y, z)["mi"]) == pytest.approx(float(q.mean()) - total / 9)
    if groups == (3,):
        assert float(made.parts(x, y, z)["tc"]) == pytest.approx(0, abs=1e-12)


def test_the_floor_lifts_variances_and_groups_must_fit():
    x, y = code(16)
    low, lower = (LatentTerms(floor=-2.0)(x, y - gap) for gap in (20, 60))
    assert torch.equal(low, lower)
    two = LatentTerms()(x[:2], y[:2], x[:2])  # at the means
    assert float(two) == pytest.approx(float((x[:2].square().sum(1) / 2 - y[:2].sum(1) / 2).mean()))
    with pytest.raises(InputError, match="expected two rows or more"):
        LatentTerms()(x[:1], y[:1])
    with pytest.raises(InputError, match=r"groups that add up to 2, got \(1, 2\)"):
        LatentTerms(groups=(1, 2))(x, y)
