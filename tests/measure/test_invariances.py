"""What maps of a site leave each measure as it is, and which do not: a line for each measure."""

import functools
import math

import pytest
import torch

from fixture_rows import X, Y
from sonde import measure

MAPS = {
    "permutation": lambda x: x.flip(1),
    "rotation": lambda x: x @ torch.linalg.qr(_square(x))[0],
    "scale": lambda x: 3.0 * x,
    "shift": lambda x: x + torch.linspace(-2.0, 5.0, x.shape[1], dtype=x.dtype),
    "unit scale": lambda x: x * torch.linspace(0.5, 4.0, x.shape[1], dtype=x.dtype),
    "linear": lambda x: x @ _square(x),
}
SHAPE = {"permutation", "rotation", "scale", "shift"}
EVERY = set(MAPS)
LABEL = torch.arange(60) % 3
UNITS = {"permutation", "scale", "shift", "unit scale"}


def mutual_knn(x, y):
    return measure.mutual_knn(x, y, metric="euclidean")


def svcca(x, y):
    return measure.svcca(x, y, keep=0.8)


def copula_information(x, y):
    return measure.mutual_information(x, y, estimator="copula")


def neighbour_information(x, y):
    return measure.mutual_information(x, y, estimator="ksg", scale="std")


def rate_reduction(x):
    return measure.rate_reduction(x, LABEL)


def bottleneck_degree(x):
    return measure.bottleneck_degree(x, torch.arange(len(x)) % 3)


def mutual_information_gap(x, y):
    return measure.mutual_information_gap(x, y, n_bins=6)


def modularity(x, y):
    return measure.modularity(x, y, n_bins=6)


def cluster_indices(x):
    return measure.cluster_indices(x, LABEL)


def v_information(x):
    return measure.v_information(x, torch.arange(len(x)) % 3)


def neural_collapse(x):
    return measure.neural_collapse(x, LABEL)


def alignment_quality(x):
    return measure.alignment_quality({"layer": x}, LABEL)


def spurious_shift(x):
    return measure.spurious_shift(x, torch.arange(60) % 3, torch.arange(60) // 3 % 2)


def adaptive_bins(x):
    return measure.information_plane(x, estimator="adaptive_bins", n_bins=3)


def adaptive_kernel(x):
    return measure.information_plane(x, estimator="adaptive_kde", noise=0.1)


def fixed_kernel(x):
    return measure.information_plane(x, estimator="kde", noise=0.5)


TWO_SIDED = [
    # measure, invariances of the first site, of the second
    (measure.cka, SHAPE, SHAPE),
    (measure.mutual_information, EVERY, EVERY),
    (copula_information, EVERY - {"rotation", "linear"}, EVERY - {"rotation", "linear"}),
    (neighbour_information, EVERY - {"rotation", "linear"}, EVERY - {"rotation", "linear"}),
    (measure.cca, EVERY, EVERY),
    (svcca, SHAPE, SHAPE),
    (measure.pwcca, SHAPE - {"rotation"}, EVERY),
    (measure.procrustes, SHAPE, SHAPE),
    (measure.rsa, SHAPE, SHAPE),
    (measure.gulp, EVERY, EVERY),
    (measure.regression, EVERY, SHAPE),
    (mutual_knn, SHAPE, SHAPE),
    (mutual_information_gap, UNITS, UNITS),
    (modularity, UNITS, UNITS),
    (measure.sap, UNITS, UNITS),
    (measure.dci, UNITS, UNITS),
    (measure.cknna, SHAPE, SHAPE),
    (measure.correlation_match, UNITS, UNITS),
    (measure.information_imbalance, SHAPE, SHAPE),
]
ONE_SIDED = [
    (spurious_shift, SHAPE),
    (v_information, SHAPE),
    (bottleneck_degree, SHAPE),
    (measure.participation_ratio, SHAPE),
    (measure.stable_rank, SHAPE),
    (measure.entropy_rank, SHAPE),
    (measure.effective_rank, SHAPE - {"shift"}),
    (measure.coding_rate, SHAPE - {"shift"}),
    (measure.uniformity, SHAPE - {"shift"}),
    (rate_reduction, SHAPE - {"shift"}),
    (measure.total_correlation, UNITS),
    (adaptive_bins, {"permutation", "scale"}),
    (adaptive_kernel, {"permutation", "scale"}),
    (fixed_kernel, {"permutation", "rotation", "shift"}),
    (measure.two_nn, SHAPE),
    (measure.mle_dimension, SHAPE),
    (measure.gride, SHAPE),
    (cluster_indices, SHAPE),
    (neural_collapse, SHAPE),
    (alignment_quality, SHAPE),
]


def _square(x):
    """Return a matrix that is neither orthogonal nor near a singular one."""
    i = torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)
    return torch.eye(x.shape[1], dtype=x.dtype) + 0.8 * torch.sin(torch.outer(i, i))


def _widths(x):
    """Return rows whose units have unlike widths, so that a scale of units is no isotropic one."""
    return x * torch.linspace(1.0, 2.0, x.shape[1], dtype=x.dtype)


def _check(of, rows, site, invariant):
    """Try the maps of the shape that leave the figure one after the other, all others alone."""
    value, together = float(of(*rows)), [name for name in MAPS if name in SHAPE & invariant]
    for names in (together, *([name] for name in MAPS if name not in together)):
        moved = functools.reduce(lambda z, name: MAPS[name](z), names, rows[site])
        other = float(of(*rows[:site], moved, *rows[site + 1 :]))
        if invariant.issuperset(names):
            assert other == pytest.approx(value, rel=1e-6, abs=1e-9), names
        else:
            assert math.isfinite(other), names
            assert abs(other - value) > 1e-5 * max(1.0, abs(value)), names


@pytest.mark.truth("the maps applied to the rows")
@pytest.mark.parametrize(
    ("of", "first", "second"), TWO_SIDED, ids=[row[0].__name__ for row in TWO_SIDED]
)
def test_two_sites(of, first, second):
    rows = [_widths(X), _widths(Y)]
    _check(of, rows, 0, first)
    _check(of, rows, 1, second)


@pytest.mark.truth("the maps applied to the rows")
@pytest.mark.parametrize(("of", "invariant"), ONE_SIDED, ids=[row[0].__name__ for row in ONE_SIDED])
def test_one_site(of, invariant):
    _check(of, [_widths(X)], 0, invariant)
