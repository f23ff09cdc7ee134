"""Copies, constants, one wide unit and missing labels: what measures say about them."""

import math
import re

import pytest
import torch

from sonde import measure
from sonde.core.errors import ShapeError, StateError


def rows(seed, dim, n=300):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = rows(0, 4), rows(1, 5)


@pytest.mark.parametrize("name", ["information_imbalance", "cknna", "mutual_knn"])
def test_equal_rows_are_flagged(name):
    function = getattr(measure, name)
    assert "copies" not in function(X, Y).flags
    assert "copies" in function(torch.cat([X, X[:1]]), torch.cat([Y, Y[7:8]])).flags
    own = [*range(300), 0]
    assert "copies" not in function(torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]]), group=own).flags


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_nn", "mle_dimension", "gride"])
def test_rows_that_are_all_but_equal_are_flagged(name):
    function = getattr(measure, name)
    assert "copies" not in function(X).flags
    assert "copies" not in function(rows(2, 1, 2000)).flags
    assert "copies" in function(torch.cat([X, X[:20] + 1e-9 * rows(3, 4, 20)])).flags
    assert "copies" in function(torch.cat([X, X[:20]])).flags
    assert "few_rows" in function(X[:3]).flags


@pytest.mark.truth("a Gaussian and an invertible linear map of it tell everything of each other")
@pytest.mark.parametrize("estimator", ["gaussian", "copula"])
def test_information_of_a_site_with_itself_is_infinite(estimator):
    for other in (X, X[:, 1:3], X[:, :3] * torch.tensor([1.0, -3.0, 1e4])):
        found = measure.mutual_information(X, other, estimator=estimator)
        assert found.value == math.inf
        assert "saturated" in found.flags
    near = measure.mutual_information(X, X + 1e-5 * rows(2, 4), debias=False)
    assert near.value == pytest.approx(4 * 0.5 * math.log(1e10), rel=0.02)
    assert "saturated" not in near.flags


def test_one_wide_unit_is_flagged_by_nearest_neighbours():
    wide = X[:, :2] * torch.tensor([1e9, 1.0])
    y = X[:, 1:2] + 0.1 * Y[:, :1]
    assert "massive_units" in measure.mutual_information(wide, y, estimator="ksg").flags
    assert "massive_units" in measure.mutual_information(y, 1e3 * y, estimator="ksg").flags
    scaled = measure.mutual_information(wide, y, estimator="ksg", scale="std")
    assert "massive_units" not in scaled.flags
    assert scaled.value > 1.4


def test_constant_sites_have_no_similarity():
    flat = torch.full_like(X, 1.7)
    pairs = measure.mutual_knn(flat, flat), measure.mutual_knn(flat, Y, metric="euclidean")
    for found in (measure.kernel_cka(flat, Y), measure.kernel_cka(Y, flat, sigma=1.0), *pairs):
        assert math.isnan(found.value)
        assert "dead" in found.flags
    some = torch.where(torch.arange(300)[:, None] < 1, 0.0, X)
    assert "dead" in measure.mutual_knn(some, Y).flags
    assert "dead" not in measure.mutual_knn(some, Y, metric="euclidean").flags


def test_a_dead_feature_leaves_the_others():
    late = X @ rows(4, 4, 4)
    whole = measure.feature_complexity([X[:, :2], late], features="units")
    late[:, 2] = 3.0
    found = measure.feature_complexity([X[:, :2], late], features="units")
    live = whole.complexity[[0, 1, 3]]
    assert found.value == pytest.approx(float(live.mean()), rel=1e-9)
    assert "dead" in found.flags


def test_heads_of_every_form():
    label = torch.arange(300) % 3
    layer = torch.nn.Linear(4, 3, bias=False, dtype=torch.float64)
    forms = layer, layer.weight, layer.weight.detach().numpy(), (layer.weight, None)
    found = [measure.neural_collapse(X, label, head=head).head_gap for head in forms]
    assert len(set(found)) == 1
    with pytest.raises(ShapeError, match=re.escape("got a weight of shape (3,)")):
        measure.neural_collapse(X, label, head=torch.ones(3))


@pytest.mark.parametrize("name", ["v_information", "information_plane"])
def test_rows_without_labels_are_told_from_broken_ones(name):
    with pytest.raises(StateError, match="No finite row has a label other than -1: pass labels"):
        getattr(measure, name)(X, torch.full((300,), -1))


@pytest.mark.truth("the value of the same rows at a scale of 1")
@pytest.mark.parametrize("scale", [1e-75, 1e-80, 1e-100, 1e-155])
@pytest.mark.parametrize("name", ["cka", "biased", "cknna", "procrustes", "gulp"])
def test_tiny_states_keep_the_value_or_say_that_it_is_lost(name, scale):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=random, dtype=torch.float64)
    y = x[:, :5] + torch.randn(100, 5, generator=random, dtype=torch.float64)
    figure = getattr(measure, "cka" if name == "biased" else name)
    options = {"debiased": False} if name == "biased" else {}
    whole, tiny = (figure(s * x, s * y, **options) for s in (1.0, scale))
    if "lost_precision" in tiny.flags and name in ("cka", "biased", "gulp"):
        assert math.isnan(tiny.value)
    else:
        assert tiny.value == pytest.approx(whole.value, rel=1e-6)
    assert "dead" not in tiny.flags
