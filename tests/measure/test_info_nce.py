import math

import numpy as np
import pytest
import torch

from fixture_rows import X, Y
from narrow import present
from sonde.cli import main
from sonde.core.errors import InputError
from sonde.measure import InfoNCE, info_nce


def _pair(seed, n, rho, dim=1):
    a, b = np.random.default_rng(seed).standard_normal((2, n, dim))
    return a, rho * a + math.sqrt(1 - rho**2) * b


def _optimal(rho, dim, batch):
    """What the logarithm of the density ratio reaches as a critic, over many batches."""
    found = []
    for seed in range(100):
        x, y = _pair(seed, batch, rho, dim)
        scores = (2 * rho * x @ y.T - rho**2 * (y**2).sum(1)) / (2 * (1 - rho**2))
        scores = torch.from_numpy(scores)
        found.append(float(scores.log_softmax(1).diagonal().mean()) + math.log(batch))
    return np.mean(found)


@pytest.mark.essential
@pytest.mark.truth("mutual information of correlated normals, and the best critic there is")
@pytest.mark.parametrize(("rho", "dim", "most_lost"), [(0.5, 1, 0.05), (0.9, 8, 0.9)])
def test_is_below_the_information_and_near_it_where_that_is_small(rho, dim, most_lost):
    truth = -dim / 2 * math.log(1 - rho**2)
    best = _optimal(rho, dim, 64)
    found = info_nce(*_pair(0, 800, rho, dim), batch=64, hidden=32, passes=20, rate=0.01)
    error = float(present(found.se))
    assert float(found) < best + 3 * error
    assert float(found) > best - most_lost
    assert best < truth
    assert float(found) < found.limit == math.log(64)
    assert ("saturated" in found.flags) == (truth > found.limit)


@pytest.mark.truth("the same rows before they moved and grew")
@pytest.mark.parametrize("hidden", [0, 8])
def test_units_are_taken_in_their_own_scale(hidden):
    x, y = _pair(5, 80, 0.9, 2)
    options = {"batch": 16, "hidden": hidden, "passes": 4}
    found = info_nce(3000.0 * x + 7.0, 0.002 * y - 1.0, **options)
    assert float(found) == pytest.approx(float(info_nce(x, y, **options)), abs=1e-3)


@pytest.mark.essential
@pytest.mark.truth("unrelated documents of alike rows")
def test_unrelated_rows_tell_nothing():
    rng, group = np.random.default_rng(1), np.repeat(np.arange(200), 3)
    x, y = rng.standard_normal((2, 200, 24))[:, group] + 0.1 * rng.standard_normal((2, 600, 24))
    found = info_nce(x, y, group=group, batch=32, hidden=32, passes=20)
    assert found.n == 200
    assert -0.1 < float(found) < 3 * float(present(found.se))
    assert float(present(found.null)) == pytest.approx(0.0, abs=0.1)


@pytest.mark.essential
@pytest.mark.truth("dependence without correlation")
def test_a_bilinear_critic_sees_correlation_alone():
    a, b = _pair(2, 400, 0.0)
    y = np.abs(a) + 0.1 * b
    options = {"batch": 64, "passes": 15, "rate": 0.02}
    assert float(info_nce(a, y, hidden=32, **options)) > 0.5
    assert float(info_nce(a, y, hidden=0, **options)) < 0.1


@pytest.mark.truth("entropy of labels that the rows give away")
def test_labels_as_rows():
    label = np.arange(400) % 4
    x = np.eye(4)[label] + 0.01 * np.random.default_rng(3).standard_normal((400, 4))
    found = info_nce(x, np.eye(4)[label], batch=64, hidden=16, passes=12, rate=0.03)
    assert float(found) == pytest.approx(math.log(4), abs=0.1)


def test_the_limit_is_printed_beside_the_value(tmp_path, capsys):
    a, b = _pair(4, 64, 0.9)
    np.savez(tmp_path / "rows.npz", a=a, b=b)
    method = "info_nce(batch=16, hidden=0, passes=2)"
    assert main(["fit", method, "-", f"{tmp_path}/rows.npz", "-o", f"{tmp_path}/out.sonde"]) == 0
    title, line = capsys.readouterr().out.splitlines()[:2]
    assert title.split()[-1] == "range"
    assert float(line.split()[-1]) == pytest.approx(math.log(16), abs=1e-3)


def test_few_and_constant_rows_and_wrong_parameters():
    few = info_nce(X[:12], Y[:12])
    assert math.isnan(few.value)
    assert "few_rows" in few.flags
    dead = info_nce(X, torch.ones(60, 3))
    assert math.isnan(dead.value)
    assert "dead" in dead.flags
    with pytest.raises(InputError, match="InfoNCE: expected a batch of at least 2"):
        InfoNCE(batch=1)
