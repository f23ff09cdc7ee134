from typing import Any

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.measure import activation_coverage

Z = torch.tensor([[-1.0, 0.2], [-0.5, 0.2], [0.0, 0.3], [0.5, 0.9]], dtype=torch.float64)
LABEL = torch.tensor([0, 1, 0, 1])


def _columns(x, label=LABEL) -> dict[str, Any]:
    return {"grad": torch.ones_like(x), "label": label, "logits": torch.eye(2)[label]}


def _small(x=Z, columns=None, **parameters):
    small: dict[str, Any] = {"n_bins": 10, "full": 2, "alpha": 1.0, "grid": "centred"}
    return activation_coverage(x, **(columns or _columns(x)), **{**small, **parameters})


@pytest.mark.truth("worked out by hand: coverages 2 and 1.5 of two units")
def test_equals_the_reference_numbers():
    assert _small(normalise="paper").value == pytest.approx(0.175, abs=1e-12)
    assert _small().value == pytest.approx(0.21875, abs=1e-12)
    assert _small().coverage.tolist() == pytest.approx([0.25, 0.1875])
    assert _small().conventions["bins"] == 8
    assert _small().flags == ()


@pytest.mark.truth("a dense comparison with every interval, the last one closed, in numpy")
def test_equals_brute_force_on_the_even_grid():
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(2, 300, 5)) * 3
    x[0] = grad[0] = 1e30  # states of exactly 1
    label, logits = rng.integers(-1, 3, 300), rng.normal(size=(300, 3))
    right = label == logits.argmax(1)
    label[0] = logits[0].argmax()
    right[0] = True
    state = 1 / (1 + np.exp(-np.clip(0.1 * x * grad, -700, 700)))
    low = np.linspace(0, 1, 12)
    inside = (state[..., None] >= low[:-1]) & (state[..., None] < low[1:])
    inside[..., -1] |= state == 1
    counts = inside[right].sum(0)
    want = np.minimum(counts / 20, 1).sum(1)
    columns: dict[str, Any] = {"grad": grad, "label": label, "logits": logits}
    got = activation_coverage(x, **columns, n_bins=12, full=20)
    assert counts.sum() == right.sum() * 5
    assert got.coverage.numpy() == pytest.approx(want / 11, rel=1e-12)
    assert got.flags == ("unlabelled",)
    paper = activation_coverage(x, **columns, n_bins=12, full=20, normalise="paper")
    assert paper.coverage.numpy() == pytest.approx(want / 12, rel=1e-12)
    assert got.n == right.sum()
    assert got.conventions["left_out"] == 300 - right.sum()
    assert got.flags == ("unlabelled",)


@pytest.mark.truth("every bin full: 1 by definition of the normalisation by bins")
def test_full_coverage_is_one():
    states = torch.linspace(0.005, 0.995, 4000, dtype=torch.float64)
    x = torch.logit(states)[:, None] / 0.1
    label = torch.arange(4000) % 2
    found = activation_coverage(x, **_columns(x, label), n_bins=11, full=10)
    assert found.value == pytest.approx(1.0, abs=1e-12)
    assert found.conventions["most"] == 1.0


@pytest.mark.truth("rows predicted wrongly do not enter, by definition")
def test_only_rightly_predicted_rows_count():
    wrong = torch.cat([Z, torch.full((50, 2), 3.0, dtype=torch.float64)])
    label = torch.cat([LABEL, torch.ones(50, dtype=torch.int64)])
    columns = _columns(wrong, label)
    columns["logits"][4:] = torch.eye(2)[0]
    assert _small(wrong, columns).value == _small().value
    assert _small(wrong, columns).n == 4


@pytest.mark.truth("units of known spread, ordered by it")
def test_grows_with_the_spread_of_states():
    rng = torch.Generator().manual_seed(0)
    values = []
    label = torch.arange(3000) % 2
    for spread in (0.3, 1.0, 3.0, 10.0, 20.0):
        x = spread * torch.randn(3000, 4, generator=rng)
        values.append(activation_coverage(x, **_columns(x, label), full=20).value)
    assert all(np.diff(values) > 0)


@pytest.mark.truth("states of almost 0.5 by construction: one bin of nine")
def test_says_where_the_steepness_leaves_nothing_to_see():
    flat = _small(1e-3 * Z, n_bins=10, grid="even", full=1)
    assert flat.conventions["single_bin"] == 1.0
    assert flat.value == pytest.approx(1 / 9)
    assert _small().conventions["single_bin"] == 0.0


def test_errors_say_what_to_do():
    with pytest.raises(
        InputError, match="expected rows that the model classifies correctly, got no"
    ):
        _small(columns=_columns(Z) | {"label": 1 - LABEL})
    with pytest.raises(InputError, match="expected labels below 2, the number of logits, got 2"):
        _small(columns=_columns(Z) | {"label": LABEL + 1})
    with pytest.raises(InputError, match="even and at least 4"):
        _small(n_bins=9)
    with pytest.raises(InputError, match="expected n_bins of at least 3"):
        _small(n_bins=2, grid="even")
    with pytest.raises(InputError, match="full of at least 1, got 0"):
        _small(full=0)
    with pytest.raises(InputError, match="needs the column 'grad'"):
        activation_coverage(Z, grad=None, label=LABEL, logits=torch.eye(2)[LABEL])
