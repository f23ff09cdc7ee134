import numpy as np
import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.detect import DictLookup


def _normal(n, dim, seed):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, dim)))


def _threshold(z):
    """The t at which max(z - t, 0) sums to 1, by bisection."""
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(z - middle, 0).sum() > 1 else (low, middle)
    return low


@pytest.mark.truth("numpy, a row at a time, its threshold by bisection")
@pytest.mark.parametrize("bank", ["sample", "coreset"])
def test_score_of_each_row(bank):
    x, new = _normal(60, 5, 0), _normal(9, 5, 1)
    scorer = DictLookup(bank=bank).fit(x)
    keys = (x / x.norm(dim=1, keepdim=True)).numpy()
    want = []
    for row in new.numpy():
        q = row / np.linalg.norm(row)
        z = keys @ q / 0.05
        r = np.maximum(z - _threshold(z), 0) @ keys
        want.append((1 - q @ r / np.linalg.norm(r)) / 2)
    np.testing.assert_allclose(scorer.score(new).numpy(), want, atol=1e-10)


def test_weights_are_few_and_sum_to_one():
    scorer = DictLookup().fit(_normal(500, 8, 0))
    weights = scorer.weights(_normal(40, 8, 1))
    torch.testing.assert_close(weights.sum(1), torch.ones(40, dtype=torch.float64))
    assert 1 <= float((weights > 0).double().sum(1).mean()) < 25


@pytest.mark.truth("1 - cosine of a row with itself, and of orthogonal rows, by hand")
def test_what_is_in_the_dictionary_scores_zero():
    scorer = DictLookup(temperature=0.01).fit(torch.eye(6, dtype=torch.float64)[:4])
    found = scorer.score(7 * torch.eye(6, dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0] * 4 + [0.5] * 2)
    assert float(scorer.score(torch.zeros(1, 6, dtype=torch.float64))) == 0.5
    opposite = -torch.ones(1, 6, dtype=torch.float64)
    assert 0.5 < float(scorer.score(opposite)) <= 1.0
    assert scorer.range == (0.0, 1.0)


@pytest.mark.truth("the planted direction")
def test_few_examples_are_enough_for_what_lies_between_them():
    """Mixtures of two directions: eight rows span them, the nearest row alone does not."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.eye(8, dtype=torch.float64)[:2]
    share = torch.rand(200, 1, dtype=torch.float64, generator=generator)
    mixed = share * ends[0] + (1 - share) * ends[1]
    support = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None]
    support = support * ends[0] + (1 - support) * ends[1]
    lookup, single = (DictLookup(temperature=t).fit(support) for t in (0.5, 1e-6))
    assert float(lookup.score(mixed).mean()) < 0.7 * float(single.score(mixed).mean())
    strange = torch.eye(8, dtype=torch.float64)[2:]
    assert float(lookup.score(strange).min()) > 10 * float(lookup.score(mixed).max())


def test_lengths_carry_nothing():
    x, new = _normal(60, 5, 0), _normal(9, 5, 1)
    a, b = DictLookup().fit(x), DictLookup().fit(x * (1 + 99 * _normal(60, 1, 2).abs()))
    torch.testing.assert_close(a.score(new), b.score(new * 3), rtol=1e-6, atol=1e-9)


def test_refuses_wrong_parameters_and_widths():
    with pytest.raises(InputError, match="m of at least 1, got 0"):
        DictLookup(m=0)
    with pytest.raises(InputError, match=r"temperature above 0, got 0\.0"):
        DictLookup(temperature=0.0)
    with pytest.raises(ShapeError, match="expected dim=3"):
        DictLookup().fit(_normal(20, 3, 0)).score(_normal(2, 4, 0))
    assert DictLookup(m=8).fit(_normal(20, 3, 0)).flags == ("sampled",)
