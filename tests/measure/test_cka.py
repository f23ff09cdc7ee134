import math

import numpy as np
import pytest
import torch

import independent_pairs
from fixture_rows import X, Y
from measure.digits import DIGITS
from narrow import present
from sonde.measure import cka


def _halves():
    return DIGITS[:, :32], DIGITS[:, 32:]


@pytest.mark.truth("whole matrices of inner products in numpy")
def test_known_values():
    assert cka(X, Y).value == pytest.approx(independent_pairs.debiased_cka(X, Y), rel=1e-9)
    biased, want = cka(X, Y, debiased=False), independent_pairs.biased_cka(X, Y)
    assert biased.value == pytest.approx(want, rel=1e-9)
    assert biased.angle == pytest.approx(math.acos(want), rel=1e-9)
    first, second = (half[::3] for half in _halves())
    want = independent_pairs.debiased_cka(first, second)
    assert cka(first, second).value == pytest.approx(want, rel=1e-9)
    want = independent_pairs.biased_cka(first, second)
    assert cka(first, second, debiased=False).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("means over all choices of two, three and four distinct groups")
def test_groups():
    group = torch.arange(60) // 3
    grouped = cka(X, Y, group=group)
    assert grouped.value == pytest.approx(independent_pairs.grouped_cka(X, Y, group), rel=1e-9)
    assert grouped.n == 20
    assert cka(X, Y, group=range(60)).value == pytest.approx(cka(X, Y).value, rel=1e-9)


def test_declared_invariances():
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    assert cka(X, X).value == pytest.approx(1.0)
    assert cka(X, 3.0 * X @ q + 7.0).value == pytest.approx(1.0, rel=1e-12)
    scaled = X * torch.arange(1.0, 6.0)
    want = independent_pairs.biased_cka(X, scaled)
    assert want < 0.8
    assert cka(X, scaled, debiased=False).value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("population value 1 / (1 + s^2) of white rows plus noise")
def test_population_value():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 6))
    result = cka(x, x + rng.standard_normal((4000, 6)))
    assert result.value == pytest.approx(0.5, abs=4 * float(present(result.se)))


@pytest.mark.truth("simulated independent rows")
@pytest.mark.parametrize(("n", "dims"), [(100, (50, 50)), (60, (100, 20))])
def test_nulls(n, dims):
    rng = np.random.default_rng(1)
    pairs = [tuple(rng.standard_normal((n, d)) for d in dims) for _ in range(10)]
    debiased = [float(cka(x, y)) for x, y in pairs]
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / 10**0.5
    biased = [cka(x, y, debiased=False) for x, y in pairs]
    assert np.mean([float(b) for b in biased]) == pytest.approx(biased[0].null, rel=0.02)


def test_rows_of_one_document_do_not_raise_the_grouped_value():
    group = np.repeat(np.arange(64), 16)
    values, rows = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        effects = [np.repeat(rng.standard_normal((64, 4)), 16, axis=0) for _ in range(2)]
        x, y = (e + 0.3 * rng.standard_normal((1024, 4)) for e in effects)
        values.append(cka(x, y, group=group).value)
        rows.append(cka(x, y).value)
    assert abs(np.mean(values)) < 4 * np.std(values) / 5**0.5
    assert np.mean(rows) > 0.03


@pytest.mark.essential
@pytest.mark.truth("spread over fresh draws of the data")
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_errors(debiased, size):
    values, errors = [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.standard_normal((200, 5)), size, axis=0)
        x = x + 0.5 * rng.standard_normal(x.shape)
        y = x + rng.standard_normal(x.shape)
        group = None if size == 1 else np.repeat(np.arange(200), size)
        result = cka(x, y, group, debiased=debiased)
        values.append(result.value)
        errors.append(result.se)
    assert np.mean(errors) / np.std(values, ddof=1) == pytest.approx(1.0, abs=0.35)


def test_a_large_mean_costs_no_digits():
    got = cka((X + 1e4).float(), (Y - 3e3).float()).value
    assert got == pytest.approx(
        cka((X + 1e4).float().double(), (Y - 3e3).float().double()).value, abs=1e-5
    )


def test_constant_rows_are_nan_and_dead():
    for debiased in (True, False):
        result = cka(X, torch.ones(60, 3), debiased=debiased)
        assert math.isnan(result.value)
        assert "dead" in result.flags


@pytest.mark.truth("standard deviation of a degenerate U statistic, sqrt(2) / n")
def test_the_error_of_unrelated_rows_is_flagged_as_too_wide():
    rng = np.random.default_rng(2)
    pairs = list(rng.standard_normal((20, 2, 200, 32)))
    found = [cka(x, y) for x, y in pairs]
    assert np.std([float(r) for r in found], ddof=1) == pytest.approx(2**0.5 / 200, rel=0.35)
    assert sum("se_first_order" in r.flags for r in found) >= 18
    x, y = pairs[0]
    assert "se_first_order" not in cka(x, x + y).flags
    assert "se_first_order" not in cka(x, y, debiased=False).flags
