import numpy as np
import pytest
import torch

from fixture_rows import X
from independent_classes import mixture_bound, pairs_bound
from measure.digits import DIGITS, NAMES
from sonde.core.errors import InputError
from sonde.measure import BottleneckDegree, bottleneck_degree, class_separability


def _classes(seed, n=300, apart=2.0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    return rng.standard_normal((n, 4)) + apart * np.eye(3, 4)[label], label


@pytest.mark.truth("pairs of rows of a class, one at a time")
def test_known_values():
    points, zero = [[-1.0], [1.0]], [0, 0]
    found = bottleneck_degree(points, zero, estimator="mc", noise=1.0, relative=False)
    assert found.value == pytest.approx(mixture_bound(points, zero, 2.0), rel=1e-9)
    assert found.lower == pytest.approx(mixture_bound(points, zero, 8.0), rel=1e-9)
    rows, label = X[:60], [0, 1, 1] * 20
    found = bottleneck_degree(rows, label, estimator="mc", noise=0.25, relative=False)
    assert found.value == pytest.approx(mixture_bound(rows, label, 0.5), rel=1e-9)
    for rows, label, noise in ((X[:30], [0] * 30, 0.25), (DIGITS, NAMES, 100.0)):
        want = pairs_bound(rows, label, noise)
        found = bottleneck_degree(rows, label, noise=noise, relative=False)
        assert found.value == pytest.approx(want, rel=1e-9)


@pytest.mark.truth("an integral over the mixture of two Gaussians")
def test_bounds_hold_the_information():
    t = np.linspace(-12.0, 12.0, 200001)
    both = (np.exp(-((t - 1) ** 2) / 2) + np.exp(-((t + 1) ** 2) / 2)) / np.sqrt(8 * np.pi)
    entropy = -np.sum(both * np.log(both)) * (t[1] - t[0])
    information = entropy - 0.5 * np.log(2 * np.pi * np.e)
    found = bottleneck_degree([[-1.0], [1.0]], [0, 0], estimator="mc", noise=1.0, relative=False)
    assert found.lower < information < found.value
    assert information == pytest.approx(0.3368308203, rel=1e-6)


@pytest.mark.truth("explained variance of the classes, and a sum over all pairs")
def test_relative_noise_from_moments_is_the_unexplained_share():
    x, label = _classes(0)
    found = bottleneck_degree(x, label, noise=0.2)
    share = class_separability(x, label)
    assert found.value == pytest.approx((1 - share.value) / 0.2, rel=1e-9)
    assert found.null == pytest.approx((1 - float(torch.as_tensor(share.null))) / 0.2, rel=1e-9)
    pairs = sum(
        np.square(x[label == k][:, None] - x[label == k][None]).sum() / np.sum(label == k)
        for k in range(3)
    )
    assert found.value == pytest.approx(pairs / 2 / len(x) / found.noise_variance, rel=1e-9)


@pytest.mark.truth("labels without meaning")
@pytest.mark.parametrize("estimator", ["jensen", "mc"])
def test_null_is_that_of_labels_without_meaning(estimator):
    x, label = _classes(1)
    rng = np.random.default_rng(0)
    found = [bottleneck_degree(x, rng.permutation(label), estimator=estimator) for _ in range(4)]
    known = bottleneck_degree(x, label, estimator=estimator)
    null = float(torch.as_tensor(known.null))
    assert np.mean([float(r) for r in found]) == pytest.approx(null, rel=0.01)
    assert float(known) < 0.98 * null


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
@pytest.mark.parametrize("estimator", ["jensen", "mc"])
def test_standard_error(estimator):
    found = [bottleneck_degree(*_classes(i, 120), estimator=estimator) for i in range(24)]
    errors = [float(torch.as_tensor(r.se)) for r in found]
    assert 0.6 < np.mean(errors) / np.std([float(r) for r in found]) < 1.7


@pytest.mark.truth("the bound on other random halves, with the noise of their own rows")
def test_the_error_counts_that_the_noise_is_a_share_of_the_rows_variance():
    rng = np.random.default_rng(5)
    x, label = rng.standard_normal((48, 3)), np.arange(48) % 2
    x[:8] *= 5
    values = []
    for _ in range(60):
        half = rng.permutation(48)[:24]
        noise = 0.1 * x[half].var(0).sum()
        values.append(mixture_bound(x[half], label[half], 2 * noise))
    found = bottleneck_degree(x, label, estimator="mc")
    assert float(torch.as_tensor(found.se)) == pytest.approx(np.std(values), rel=0.25)


def test_flags_and_unlabelled_rows():
    x, label = _classes(2, 60)
    for estimator in ("jensen", "mc"):
        found = bottleneck_degree(x, label, estimator=estimator)
        unknown = np.where(np.arange(90) < 60, np.resize(label, 90), -1)
        more = bottleneck_degree(np.vstack([x, 9 * x[:30]]), unknown, estimator=estimator)
        assert more.value == pytest.approx(found.value, rel=1e-6)
        dead = bottleneck_degree(np.ones((30, 2)), label[:30], estimator=estimator)
        assert np.isnan(dead.value)
        assert "dead" in dead.flags
        few = [bottleneck_degree(x[:n], label[:n], estimator=estimator).flags for n in (5, 6)]
        assert ["few_rows" in flags for flags in few] == [True, False]
    far = bottleneck_degree(100 * X, [0] * 60, estimator="mc", noise=0.01, relative=False)
    assert "saturated" in far.flags
    assert float(far) == pytest.approx(np.log(60), rel=1e-6)


def test_wrong_noise_is_named():
    with pytest.raises(InputError, match=r"BottleneckDegree: expected noise in \(0, inf\)"):
        BottleneckDegree(noise=0.0)
