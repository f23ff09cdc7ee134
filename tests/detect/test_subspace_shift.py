from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from detect.shift_rates import assert_right_rate, comparisons
from sonde.core.errors import InputError
from sonde.detect import SubspaceShift


def _rows(seed, n, dim=6):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, dim)) * np.linspace(4, 1, dim) + 5)


def _turned(rows, degrees, i=0, j=-1):
    angle = np.deg2rad(degrees)
    out, centred = rows.clone(), rows - 5
    out[:, i] = 5 + np.cos(angle) * centred[:, i] - np.sin(angle) * centred[:, j]
    out[:, j] = 5 + np.sin(angle) * centred[:, i] + np.cos(angle) * centred[:, j]
    return out


def _leading(x, rank):
    return np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[2][:rank].T


@pytest.mark.truth("scipy.linalg.subspace_angles")
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_angles_are_those_of_the_leading_directions(rank):
    x, y = _rows(0, 300), _turned(_rows(1, 200), 30)
    found: Any = SubspaceShift(rank=rank, permutations=9).between(x, y)
    a, b = (_leading(rows, rank) for rows in (x, y))
    want = np.sort(subspace_angles(a, b))
    np.testing.assert_allclose(np.deg2rad(found.angles.numpy()), want, atol=1e-7)
    assert float(found) == pytest.approx(np.mean(np.sin(want) ** 2), abs=1e-9)
    outside = found.axis.numpy()
    assert np.linalg.norm(outside) == pytest.approx(1)
    assert np.abs(a.T @ outside).max() < 1e-9


@pytest.mark.truth("a planted turn by 40 degrees")
def test_a_turn_is_found_and_a_moved_mean_is_none():
    x, y = _rows(0, 400), _rows(1, 400)
    turned: Any = SubspaceShift(rank=1).between(x, _turned(y, 40))
    assert float(turned.angles[0]) == pytest.approx(40, abs=6)
    assert turned.p <= 0.002
    assert int(turned.axis.abs().argmax()) == 5
    assert SubspaceShift(rank=1).between(x, y + torch.arange(6)).p > 0.05


@pytest.mark.truth("swapping sides inside pairs: brute force over all 2**8 exchanges")
def test_pairs_change_sides_together():
    x = _rows(3, 8, 4)
    y = x + 0.3 * _rows(4, 8, 4)
    ids = [f"row {i}" for i in range(8)]
    shift = SubspaceShift(rank=1, permutations=999)
    found = shift.fit(x, ids=ids).compare(shift.fit(y[torch.arange(7, -1, -1)], ids=ids[::-1]))
    own = [rows - rows.mean(0) for rows in (x, y)]
    values = []
    for code in range(256):
        coin = torch.tensor([bool(code >> i & 1) for i in range(8)])[:, None]
        one, other = torch.where(coin, *own), torch.where(coin, *own[::-1])
        values.append(np.sin(subspace_angles(_leading(one, 1), _leading(other, 1))[0]) ** 2)
    share = np.mean(np.array(values) >= values[0] - 1e-12)
    assert found.p == pytest.approx(share, abs=0.05)


@pytest.mark.truth("the uniform distribution of p-values without change, by simulation")
def test_false_alarms_are_no_more_than_promised():
    shift = SubspaceShift(rank=2, permutations=99)
    found = comparisons(shift, lambda seed: (_rows(seed, 60), _rows(10_000 + seed, 45)))
    assert_right_rate([c.p for c in found])


def test_one_dimension_has_no_angle():
    found: Any = SubspaceShift(permutations=9).between(_rows(0, 20, 1), _rows(1, 20, 1))
    assert found.flags == ("saturated",)
    assert found.p == 1.0
    assert len(found.angles) == 0


def test_absurd_parameters_are_refused():
    with pytest.raises(InputError, match="rank of at least 1, got 0"):
        SubspaceShift(rank=0)
