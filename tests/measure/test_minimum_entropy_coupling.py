import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import entropy

import independent_information
from sonde.core.errors import InputError
from sonde.measure import minimum_entropy_coupling


@pytest.mark.truth("all corners of the set of couplings, by linear algebra")
def test_known_values():
    found = minimum_entropy_coupling([0.6, 0.4], [0.5, 0.5])
    assert sorted(found.coupling.flatten().tolist()) == pytest.approx([0, 0.1, 0.4, 0.5])
    want = independent_information.least_coupling_entropy([0.6, 0.4], [0.5, 0.5])
    assert found.bits().value == pytest.approx(want, rel=1e-9)
    alone = entropy([0.6, 0.4], base=2) + entropy([0.5, 0.5], base=2)
    assert found.information / math.log(2) == pytest.approx(alone - want, rel=1e-9)
    more = minimum_entropy_coupling([4, 3, 3], [1, 1])
    want = independent_information.least_coupling_entropy([0.4, 0.3, 0.3], [0.5, 0.5])
    assert more.bits().value == pytest.approx(want, rel=1e-9)
    empty = minimum_entropy_coupling([0.6, 0.0, 0.4], [0.5, 0.5])
    assert empty.value == pytest.approx(found.value, rel=1e-12)
    assert empty.coupling[1].tolist() == [0.0, 0.0]


@pytest.mark.truth("all corners of the set of couplings, found by random linear programmes")
def test_within_a_bit_of_the_least():
    rng = np.random.default_rng(0)
    for _ in range(3):
        p, q = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
        found = minimum_entropy_coupling(p, q)
        np.testing.assert_allclose(found.coupling.sum(1), p, atol=1e-12)
        np.testing.assert_allclose(found.coupling.sum(0), q, atol=1e-12)
        sums = [np.kron(np.eye(3), np.ones(3)), np.kron(np.ones(3), np.eye(3))]
        least = min(_corner(rng, np.vstack(sums), np.hstack([p, q])) for _ in range(40))
        assert found.bound - 1e-9 <= least <= found.value + 1e-9 <= least + math.log(2)


def _corner(rng, sums, marginals):
    """Return the entropy of a corner: concave, it is least at one of them."""
    mass = linprog(rng.standard_normal(9), A_eq=sums, b_eq=marginals).x
    mass = mass[mass > 1e-12]
    return -np.sum(mass * np.log(mass))


def test_equal_sides_need_no_more_than_one_of_them():
    found = minimum_entropy_coupling([0.2, 0.3, 0.5], [0.5, 0.2, 0.3])
    assert found.value == pytest.approx(found.bound, rel=1e-12)
    assert found.information == pytest.approx(found.bound, rel=1e-12)


def test_what_is_no_distribution_is_refused():
    with pytest.raises(InputError, match="minimum_entropy_coupling: expected q of at least 0"):
        minimum_entropy_coupling([0.5, 0.5], [0.5, -0.5, 1.0])
