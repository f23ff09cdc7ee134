"""The figures and curves of sites: those of wide sites come from the sampled rows."""

import numpy as np
import pytest
import torch

from findings._evidence import evidence_of
from sonde.core.errors import StateError
from sonde.findings.profile import site_profile
from sonde.stats import Moments


def three_directions(dim: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(160, 3, generator=g) @ torch.randn(3, dim, generator=g)
    return rows + 0.001 * torch.randn(160, dim, generator=g)


@pytest.mark.slow
@pytest.mark.truth("numpy.linalg.svd of the rows in float64")
@pytest.mark.parametrize("dim", [300, 2100])
def test_curve_and_ranks_are_those_of_the_covariance(dim):
    x = three_directions(dim)
    evidence = evidence_of(x)
    found = site_profile(evidence.sites[0], evidence)
    rows = x.double().numpy()
    want = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    share = want / want.sum()
    np.testing.assert_allclose(found["curves"]["spectrum"]["y"][:3], share[:3], rtol=1e-4)
    values = found["values"]
    ratio, stable = want.sum() ** 2 / (want**2).sum(), want.sum() / want[0]
    assert values["participation_ratio"]["value"] == pytest.approx(ratio, rel=1e-4)
    assert values["stable_rank"]["value"] == pytest.approx(stable, rel=1e-4)
    assert 1.0 < values["effective_rank"]["value"] < 10.0
    assert values["participation_ratio"]["se"] > 0


def test_a_site_without_variance_has_no_curve():
    evidence = evidence_of(torch.ones(20, 4))
    assert site_profile(evidence.sites[0], evidence)["curves"] == {}


def test_variances_alone_have_no_eigenvalues():
    moments = Moments("diag").observe(three_directions(8))
    with pytest.raises(
        StateError, match=r"MomentsState.eigenvalues: expected .* full scatter matrix"
    ):
        _ = moments.eigenvalues
