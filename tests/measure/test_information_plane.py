import math

import numpy as np
import pytest
import torch
from scipy.special import digamma, logsumexp

import independent_information
from fixture_rows import X
from sonde import InputError
from sonde.measure import information_plane, mutual_information
from sonde.measure.information_plane import neighbour_entropy

BITS = math.log(2)


def toy(act):
    """Return the states of a layer of three units on all 4,096 inputs of 12 bits, and labels."""
    s = torch.cartesian_prod(*12 * [torch.tensor([-1.0, 1.0], dtype=torch.float64)])
    j, k = torch.arange(12.0).double(), torch.arange(3.0).double()
    weight = torch.sin(1.3 * torch.outer(j + 1, k + 1))
    return act(s @ weight), (s[:, 0] * s[:, 1] > 0).long()


@pytest.mark.truth("patterns counted in plain Python, and quantiles by numpy")
@pytest.mark.parametrize(
    ("act", "options"),
    [
        (torch.tanh, {"estimator": "bins"}),
        (torch.tanh, {"estimator": "bins", "n_bins": 5}),
        (torch.tanh, {"estimator": "adaptive_bins"}),
        (torch.relu, {"estimator": "bins"}),
        (torch.relu, {"estimator": "adaptive_bins"}),
    ],
)
def test_bins_of_a_toy_net(act, options):
    x, label = toy(act)
    share = np.arange(1, options.get("n_bins", 30)) / options.get("n_bins", 30)
    if options["estimator"] == "bins":
        options = {**options, "low": -1.0, "high": 1.0}
        edges = 2 * share - 1
    else:
        edges = np.unique(np.quantile(np.unique(x), share))
    about_input = independent_information.information_of_patterns(x, edges)
    about_label = independent_information.information_of_patterns(x, edges, label)
    found = information_plane(x, **options, m=len(x))
    assert float(found) / BITS == pytest.approx(about_input, rel=1e-8)
    assert float(information_plane(x, label, **options, m=len(x))) / BITS == pytest.approx(
        about_label, rel=1e-8
    )
    assert ("saturated" in found.flags) == (found.n_symbols > 2048)


@pytest.mark.truth("brute force with scipy's logsumexp")
def test_kernels():
    d2 = torch.cdist(X, X).square().numpy()
    label = torch.arange(len(X)) % 3

    def bound(v, rows):
        inner = np.asarray(logsumexp(-d2[np.ix_(rows, rows)] / (2 * v), axis=1))
        return math.log(len(rows)) - float(inner.mean())

    every, kinds = np.arange(len(X)), [np.flatnonzero(label == k) for k in range(3)]
    found = information_plane(X, estimator="kde", noise=0.1)
    assert float(found) == pytest.approx(3.5080437566, rel=1e-9) == bound(0.1, every)
    assert found.lower == pytest.approx(2.7894719985, rel=1e-9)
    assert found.kept == 1.0  # nothing is compressed
    v = 1e-3 * float(X.abs().max()) ** 2
    want = bound(v, every) - sum(len(r) * bound(v, r) for r in kinds) / len(X)
    adaptive = information_plane(X, label, estimator="adaptive_kde")
    assert float(adaptive) == pytest.approx(want, rel=1e-9)
    assert adaptive.noise_variance == pytest.approx(v)


@pytest.mark.truth("closed form")
@pytest.mark.parametrize("estimator", ["adaptive_bins", "bins", "kde", "adaptive_kde"])
def test_far_clusters_and_their_labels(estimator):
    label = torch.arange(4).repeat(30)
    x = 100.0 * torch.eye(4)[label]
    found = information_plane(x, estimator=estimator)
    assert float(found) == pytest.approx(math.log(4), rel=1e-9)
    told = information_plane(x, label, estimator=estimator)
    assert float(told) == pytest.approx(math.log(4), rel=1e-9) == told.most
    assert float(torch.as_tensor(told.null)) < 0.2


def test_adaptive_bins_see_no_increasing_map_of_the_layer():
    x, _ = toy(torch.tanh)
    found = information_plane(x[:500])
    assert float(information_plane(torch.atanh(x[:500]) ** 3)) == pytest.approx(float(found), 1e-9)


def test_labels_without_meaning_have_the_value_of_the_null():
    x, _ = toy(torch.relu)
    lot = torch.randint(0, 2, (len(x),), generator=torch.Generator().manual_seed(0))
    found = information_plane(x, lot, estimator="bins", low=-1.0, high=1.0)
    assert float(found) == pytest.approx(float(torch.as_tensor(found.null)), rel=0.15)


def test_constant_rows_are_dead_and_ends_in_the_wrong_order_an_error():
    assert "dead" in information_plane(torch.ones(40, 3)).flags
    assert "dead" in information_plane(X, torch.zeros(len(X)).long()).flags
    with pytest.raises(InputError, match="InformationPlane: expected low below high, got 1"):
        information_plane(X, estimator="bins", low=1.0, high=0.0)


@pytest.mark.essential
@pytest.mark.truth("mutual information of Gaussian pairs: 2 nats")
def test_neighbours_of_principal_components():
    draw = np.random.default_rng(0)
    rho = math.sqrt(1 - math.exp(-2))
    a, b = draw.standard_normal((2, 1200, 2))
    b = rho * a + math.sqrt(1 - rho**2) * b
    x, y = (
        z @ np.linalg.qr(draw.standard_normal((30, 30)))[0][:2]
        + 1e-3 * draw.standard_normal((1200, 30))
        for z in (a, b)
    )
    found = mutual_information(x, y, estimator="ksg", components=2)
    assert float(found) == pytest.approx(2.0, abs=0.08)
    assert min(found.kept) > 0.99
    assert found.flags == ("se_first_order",)  # the cut to two components is taken as known
    plain = mutual_information(x[:300], y[:300], estimator="ksg")
    assert "high_dim" in plain.flags
    with pytest.raises(InputError, match="components only with the estimator 'ksg'"):
        mutual_information(x, y, components=2)


@pytest.mark.truth("a loop over the rows of other groups, with scipy's digamma")
def test_the_entropy_of_neighbours_by_hand():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    group = torch.arange(20) // 3
    terms = []
    for i in range(20):
        gaps = (x[group != group[i]] - x[i]).abs().amax(1).sort().values
        volume = 3 * math.log(2 * float(gaps[3]))
        terms.append(digamma(len(gaps) + 1) - digamma(4) + volume)
    assert float(neighbour_entropy(x, group, 4)) == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.essential
@pytest.mark.truth("entropies of normal rows with normal noise, in closed form")
@pytest.mark.parametrize("variance", [0.3, 0.02])
def test_codes_of_a_plane_in_many_units(variance):
    draw = torch.Generator().manual_seed(3)
    plane = torch.randn(2, 9, generator=draw, dtype=torch.float64)
    x = torch.randn(2048, 2, generator=draw, dtype=torch.float64) @ plane + 7.0
    want = math.log((1 + variance) / variance)  # both codes: twice a half
    form = {"estimator": "compressed", "compressor": "pca", "noise": variance}
    found = information_plane(x, **form)
    assert float(found) == pytest.approx(want, abs=0.05)
    assert found.kept == pytest.approx(1.0)
    one = information_plane(x, **form, codes=1)
    assert float(one) == pytest.approx(want / 2, abs=0.05)
    assert one.se is not None
    assert float(one.se) == pytest.approx(0.02, abs=0.01)


@pytest.mark.slow
@pytest.mark.truth("the entropy of labels that far clusters tell, and of those that they do not")
def test_codes_about_the_label():
    draw = torch.Generator().manual_seed(0)
    label = (torch.rand(1500, generator=draw) < 0.3).long() + 2 * (torch.arange(1500) % 2)
    centre = torch.randn(4, 6, generator=draw) * 8
    x = centre[label] + torch.randn(1500, 6, generator=draw)
    share = torch.bincount(label).double() / 1500
    found = information_plane(x, label, estimator="compressed", compressor="pca")
    assert float(found) == pytest.approx(-float((share * share.log()).sum()), abs=0.03)
    mixed = information_plane(
        x, label[torch.randperm(1500, generator=draw)], estimator="compressed"
    )
    assert mixed.null is not None
    assert abs(mixed.null) < 0.05
    assert float(mixed) == pytest.approx(float(torch.as_tensor(mixed.null)), abs=0.05)
    few = information_plane(x[:20], label[:20], estimator="compressed", compressor="pca")
    assert "few_rows" in few.flags
    assert math.isnan(float(few))


@pytest.mark.slow
def test_a_code_that_follows_a_curve_tells_more_than_a_component():
    draw = torch.Generator().manual_seed(0)
    turn = torch.rand(1500, generator=draw, dtype=torch.float64) * 4.5
    turn = torch.stack([turn.cos(), turn.sin()], 1) @ torch.randn(2, 5, generator=draw).double()
    curved, straight = (
        information_plane(turn, estimator="compressed", compressor=c, codes=1, noise=1e-3)
        for c in ("autoencoder", "pca")
    )
    assert 1.0 > curved.kept > 0.9 > straight.kept
    even = 0.5 * math.log(12 / (2 * math.pi * math.e)) + 0.5 * math.log(1 / 1e-3)
    assert float(curved) > float(straight) + 0.1
    assert float(curved) == pytest.approx(even, abs=0.15)  # the code is even where the curve is
