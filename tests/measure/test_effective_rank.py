import numpy as np
import pytest
import scipy.stats
import torch
from tests.student import student

import independent_spectra
from fixture_rows import X
from measure.digits import DIGITS
from sonde.measure import EffectiveRank, effective_rank
from sonde.stats import HashSampleState, random_halves


@pytest.mark.truth("singular values of the rows in numpy")
@pytest.mark.parametrize("rows", [X, DIGITS])
@pytest.mark.parametrize("source", ["moments", "sample"])
def test_known_values(rows, source):
    want = independent_spectra.effective_rank(rows)
    assert effective_rank(rows, source=source).value == pytest.approx(want, rel=1e-9)


@pytest.mark.essential
@pytest.mark.truth("numpy and scipy in float64")
def test_float32_rows_keep_small_directions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(150, 3, generator=g) @ torch.randn(3, 400, generator=g)
    x = x + 1e-5 * torch.randn(150, 400, generator=g)
    want = np.exp(scipy.stats.entropy(np.linalg.svd(x.double().numpy(), compute_uv=False)))
    assert effective_rank(x).value == pytest.approx(want, rel=1e-5)


@pytest.mark.truth("halves of the rows by numpy and scipy")
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dim", [6, 50])
def test_error_from_halves(centered, dim):
    x = torch.randn(40, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    row = torch.arange(40)
    state = HashSampleState(40, x, row, row // 2, row // 2)
    result = EffectiveRank(centered, "sample").result(state)
    values = []
    for mask in random_halves(state.group):
        z = x[mask].numpy()
        z = z - z.mean(0) if centered else z
        values.append(np.exp(scipy.stats.entropy(np.linalg.svd(z, compute_uv=False))))
    assert result.se == pytest.approx(np.std(values, ddof=1) * student(20), rel=1e-6)


@pytest.mark.essential
@pytest.mark.truth("singular values of the rows in numpy")
def test_centered_values():
    for rows in (X, DIGITS):
        want = independent_spectra.effective_rank(rows, centered=True)
        assert effective_rank(rows, centered=True).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("white rows, drawn and measured by numpy and scipy")
@pytest.mark.parametrize(("n", "dim"), [(90, 30), (30, 70)])
def test_the_null_is_what_white_rows_have(n, dim):
    rng = np.random.default_rng(0)
    drawn = np.linalg.svd(rng.standard_normal((40, n, dim)), compute_uv=False)
    want = np.exp(scipy.stats.entropy(drawn, axis=1)).mean()
    assert effective_rank(rng.standard_normal((n, dim))).null == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_groups_for_halves_give_a_reason(n):
    result = effective_rank(X[:n], source="sample")
    assert result.se is None
    assert "four groups" in result.conventions["se"]
    assert effective_rank(X[:4], source="sample").se is not None
