"""Least-squares erasure: closed form, constrained optimiser, another library's numbers."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.edit import Leace, Sal
from sonde.stats.spreads import spreads
from sonde.testing import check

SITE, CONTEXT = Site("x"), EditContext()
EXACT = Leace(products="exact", shrinkage=0.0)
PLAIN = Leace(shrinkage=0.0)
THEIRS = [6.9498439430243435, 8.975466110890798, 6.228408912225482, 3.554957633919603]
THEIRS_ORTH = [6.12004305645635, 7.915816366745449, 5.75409297294075, 2.2608185535021654]


def rows(n=600, dim=6, classes=3, seed=0, rare=None):
    """Correlated rows, a gap for each class."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    label = torch.arange(n) % classes
    if rare is not None:
        label = (torch.arange(n) < rare).long()
    gap = torch.randn(classes, dim, generator=rng, dtype=torch.float64)
    noise = torch.randn(n, dim, generator=rng, dtype=torch.float64)
    return noise @ mix + gap[label] + 5, label


def erased(result, x, strength=1.0):
    return result.edit(strength).apply(x, SITE, CONTEXT)


def cross_covariance(x, label):
    z = torch.nn.functional.one_hot(label).double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("method", [EXACT, PLAIN, Leace(), Sal()], ids=repr)
@pytest.mark.parametrize("rare", [None, 2])
def test_nothing_linear_is_left_not_even_of_a_rare_class(method, rare):
    x, label = rows(20_000, rare=rare, classes=2 if rare else 3)
    before = cross_covariance(x, label).abs().max()
    after = cross_covariance(erased(method.fit(x, label), x), label).abs().max()
    assert (float(before) > 1e-5, float(after) < 1e-13) == (True, True)


@pytest.mark.truth("sklearn LogisticRegression on rows before and after")
def test_a_logistic_probe_falls_to_the_majority():
    x, label = rows(3000)
    fresh, own = rows(3000, seed=0)
    new = erased(EXACT.fit(x, label), x)
    probe = LogisticRegression(max_iter=500).fit(x, label)
    assert probe.score(fresh, own) > 0.6
    blind = LogisticRegression(max_iter=500).fit(new, label)
    np.testing.assert_allclose(blind.predict_proba(new), 1 / 3, atol=1e-3)


@pytest.mark.truth("x - (x - m)' S^-1 d / (d' S^-1 d) d for two classes")
def test_two_classes_in_closed_form():
    x, label = rows(classes=2)
    d = x[label == 1].mean(0) - x[label == 0].mean(0)
    normal = torch.linalg.solve(torch.cov(x.T), d)
    want = x - ((x - x.mean(0)) @ normal / (d @ normal))[:, None] * d
    torch.testing.assert_close(erased(EXACT.fit(x, label), x), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(erased(PLAIN.fit(x.float(), label), x), want, atol=1e-4, rtol=1e-4)


@pytest.mark.truth("scipy's constrained minimum of the mean squared change over all affine maps")
def test_no_other_map_changes_less():
    x, label = rows(400, 3, 2)
    centred = (x - x.mean(0)).numpy()
    cross = cross_covariance(x, label).numpy()[:, 1]
    covariance = centred.T @ centred / len(x)

    def change(flat):
        e = flat.reshape(3, 3)
        return np.trace(e @ covariance @ e.T)

    guard = {"type": "eq", "fun": lambda flat: flat.reshape(3, 3) @ cross - cross}
    start = np.random.default_rng(0).standard_normal(9)
    found = minimize(change, start, constraints=[guard], tol=1e-12, options={"maxiter": 500})
    result = EXACT.fit(x, label)
    assert result.value * np.trace(covariance) == pytest.approx(found.fun, rel=1e-6)
    torch.testing.assert_close(
        result.left @ result.right.T, torch.from_numpy(found.x.reshape(3, 3)), atol=1e-4, rtol=1e-4
    )
    assert Sal().fit(x, label).value > result.value


def test_again_changes_nothing_and_a_refit_finds_nothing():
    x, label = rows()
    result = EXACT.fit(x, label)
    once = erased(result, x)
    torch.testing.assert_close(erased(result, once), once, rtol=1e-10, atol=1e-10)
    assert EXACT.fit(once, label).rank == 0
    assert erased(result, x, 0.0) is x
    half = erased(result, x, 0.5)
    torch.testing.assert_close(half, (x + once) / 2, rtol=1e-10, atol=1e-10)


def test_equal_and_constant_units_are_borne():
    x, label = rows()
    x = torch.cat([x, x[:, :1], torch.ones(len(x), 1)], 1)
    for method in (EXACT, PLAIN):
        new = erased(method.fit(x, label), x)
        assert float(cross_covariance(new, label).abs().max()) < 1e-12
        torch.testing.assert_close(new[:, 0], new[:, -2], rtol=1e-9, atol=1e-9)
        assert torch.equal(new[:, -1], x[:, -1])


@pytest.mark.truth("r_T(Tx) = T r(x), a property of the optimum")
def test_an_invertible_map_of_the_rows_goes_through():
    x, label = rows()
    t = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mapped = erased(EXACT.fit(x @ t.T, label), x @ t.T)
    torch.testing.assert_close(mapped, erased(EXACT.fit(x, label), x) @ t.T, rtol=1e-8, atol=1e-8)


@pytest.mark.truth("concept-erasure 0.2.4 without shrinkage, run once on these rows")
def test_the_numbers_of_concept_erasure():
    x, label = rows(60, 4, 3)
    new = erased(EXACT.fit(x, label), x)
    torch.testing.assert_close(new[0], torch.tensor(THEIRS, dtype=torch.float64))
    orthogonal = erased(Sal().fit(x, label), x)
    torch.testing.assert_close(orthogonal[0], torch.tensor(THEIRS_ORTH, dtype=torch.float64))


def test_known_classes_are_subtracted_and_change_less():
    x, label = rows()
    result = EXACT.fit(x, label)
    oracle = result.oracle(label).apply(x, SITE, CONTEXT)
    means = torch.stack([oracle[label == k].mean(0) for k in range(3)])
    torch.testing.assert_close(means, x.mean(0).expand(3, -1))
    assert (oracle - x).square().mean() < (erased(result, x) - x).square().mean()
    with pytest.raises(InputError, match="classes among 0, 1, 2, got 7"):
        result.oracle(torch.tensor([0, 7]))


def test_bad_input():
    x, label = rows()
    with pytest.raises(InputError, match="Leace: expected rows of at least two classes, got 1"):
        Leace().fit(x, label * 0)
    with pytest.raises(ShapeError, match="dim=6, got dim=5 at x"):
        erased(Leace().fit(x, label), x[:, :5])
    with pytest.raises(ShapeError, match="one vector for each example"):
        Leace().fit(x, label).oracle(label).apply(x[:5], SITE, CONTEXT)
    partly = torch.where(torch.arange(len(label)) < 300, label, -1)
    assert "unlabelled" in Leace().fit(x, partly).flags


@pytest.mark.slow
def test_edits_keep_the_laws():
    x, label = rows(60, 4)
    result = Leace().fit(x, label)
    for strength in (1.0, 0.5):
        check(result.edit(strength))
        check(result.oracle(torch.tensor([0, 2, 1]), strength))


def test_with_few_rows_new_rows_move_as_the_fitted_rows_do():
    """In 96 dimensions of unequal variance, erasers of 90 rows move new rows."""
    moved = {method: [] for method in (PLAIN, Leace())}
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        mix = torch.linalg.qr(torch.randn(96, 96, generator=draw)).Q
        label = torch.arange(602) % 2
        x = (torch.randn(602, 96, generator=draw) * torch.logspace(0, -2, 96)) @ mix
        x = x + label[:, None] * mix[60] * 0.1
        for method, sizes in moved.items():
            result = method.fit(x[:90], label[:90])
            assert "few_rows" in result.flags
            sizes.append(spreads(x[90:], erased(result, x[90:])))
            after = erased(result, x[:90])
            gap = after[label[:90] == 1].mean(0) - after[label[:90] == 0].mean(0)
            assert gap.abs().max() < 1e-5
    assert sum(moved[Leace()]) < 0.7 * sum(moved[PLAIN])
