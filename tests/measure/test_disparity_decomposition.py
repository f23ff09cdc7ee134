import math

import numpy as np
import pytest
import torch
from scipy.special import xlogy

import independent_information
from sonde.core.errors import InputError
from sonde.measure import disparity_decomposition, fair_accuracy_limit
from sonde.measure.disparity_decomposition import decompose

BITS = [(z, s) for z in (0, 1) for s in (0, 1)] * 4


def _rows(counts):
    """Return the columns of a table of whole counts."""
    return np.repeat(np.indices(np.shape(counts)).reshape(3, -1), np.ravel(counts), axis=1)


def _parts(z, a, s):
    found = disparity_decomposition(z, a, s, shuffles=0)
    parts = (float(found), found.local, found.unique, found.redundant, found.masked)
    return [part / math.log(2) for part in parts]


@pytest.mark.truth("gates whose parts are known")
def test_gates():
    z, s = np.array(BITS).T
    assert _parts(z, z, s) == pytest.approx([1, 1, 1, 0, 0], abs=1e-9)
    assert _parts(z, z, z) == pytest.approx([1, 0, 0, 1, 0], abs=1e-9)
    assert _parts(z ^ s, z, s) == pytest.approx([0, 1, 0, 0, 1], abs=1e-9)
    both = [0.3112781245, 0.5, 0.0, 0.3112781245, 0.5]
    assert _parts(z & s, z, s) == pytest.approx(both, abs=1e-9)


@pytest.mark.truth("scipy's search for the least, and a grid over all joint distributions")
def test_mixed_tables():
    p = [[[25, 5], [5, 10]], [[5, 5], [15, 30]]]
    want = independent_information.disparity_parts(p)
    assert _parts(*_rows(p)) == pytest.approx(want, abs=1e-6)
    q = [[[20, 5], [10, 15]], [[5, 10], [5, 30]]]
    assert _parts(*_rows(q)) == pytest.approx(independent_information.disparity_parts(q), abs=1e-6)
    # one number for each value of the attribute is free
    steps = np.stack(np.meshgrid(*2 * [np.linspace(-0.05, 0.05, 201)]), -1).reshape(-1, 2)
    q = np.array(p) / 100 + steps[:, :, None, None] * [[1, -1], [-1, 1]]
    q = q[(q >= 0).all((1, 2, 3))]
    terms = [xlogy(m, m).sum((1, 2, 3)) for m in (q, q.sum((1, 2), keepdims=True),
             q.sum(1, keepdims=True), q.sum(2, keepdims=True))]  # fmt: skip
    least = (terms[0] + terms[1] - terms[2] - terms[3]).min() / math.log(2)
    assert least == pytest.approx(want[2], abs=1e-5)


@pytest.mark.truth("what is left where no client's predictions tell")
def test_null_keeps_what_clients_explain():
    rng = np.random.default_rng(0)
    s = rng.integers(0, 2, 4000)
    z, a = (np.where(rng.random(4000) < 0.8, s, 1 - s) for _ in "za")
    found = disparity_decomposition(z, a, s)
    assert found.value == pytest.approx(float(torch.as_tensor(found.null)), rel=0.2)
    assert found.redundant == pytest.approx(found.value, rel=0.1)
    told = disparity_decomposition(z, z, s)
    assert told.value > 2 * float(torch.as_tensor(told.null))


def test_bad_columns_are_named():
    with pytest.raises(InputError, match="got 2 of attribute, 3 of prediction, 2 of client"):
        disparity_decomposition([0, 1], [0, 1, 1], [0, 1])
    with pytest.raises(InputError, match="decompose: expected counts of at least 0"):
        decompose(torch.zeros(2, 2, 2))


def test_missing_values_are_no_values_of_their_own():
    """Each NaN would be an attribute of one row, which its prediction tells exactly."""
    z = [0.0, 1.0, math.nan, math.nan]
    for call in (
        lambda: disparity_decomposition(z, [0, 1, 0, 1], [0, 0, 1, 1]),
        lambda: fair_accuracy_limit([0, 1, 0, 1], [0, 0, 1, 1], z),
    ):
        with pytest.raises(InputError, match="expected a known value"):
            call()
