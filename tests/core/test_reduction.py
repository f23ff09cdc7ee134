import numpy as np
import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.core.reduction import reduce_scores


def _by_loop(scores, example, how):
    out = []
    for e in np.unique(example):
        mine = np.sort(scores[example == e])[::-1]
        k = {"max": 1, "mean": len(mine)}.get(how, 3)
        out.append(mine[:k].mean())
    return out


@pytest.mark.truth("numpy, one example at a time")
@pytest.mark.parametrize("how", ["max", "mean", "topk_mean(3)"])
def test_one_score_for_each_example(how):
    rng = np.random.default_rng(0)
    scores, example = rng.normal(size=200), rng.integers(0, 40, 200) * 3
    found = reduce_scores(torch.as_tensor(scores), torch.as_tensor(example), how)
    np.testing.assert_allclose(found.score.numpy(), _by_loop(scores, example, how), atol=1e-12)
    assert found.example.tolist() == np.unique(example).tolist()
    worst = [np.flatnonzero(example == e)[scores[example == e].argmax()] for e in found.example]
    assert found.row.tolist() == worst


def test_order_of_rows_does_not_matter():
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    example, order = torch.arange(300) // 7, torch.randperm(300)
    one, other = (
        reduce_scores(s, e, "mean") for s, e in ((scores, example), (scores[order], example[order]))
    )
    assert torch.equal(one.score, other.score)


def test_a_row_that_is_not_finite_makes_its_example_infinite():
    scores = torch.tensor([1.0, torch.inf, 2.0])
    found = reduce_scores(scores, torch.tensor([0, 0, 1]), "mean")
    assert found.score.tolist() == [torch.inf, 2.0]
    assert reduce_scores(scores[:0], torch.zeros(0, dtype=torch.int64)).score.tolist() == []


def test_refuses_what_it_does_not_know():
    for how in ("median", "topk_mean(0)", "topk_mean(2.5)", "topk_mean"):
        with pytest.raises(InputError, match="expected one of max, mean, topk_mean"):
            reduce_scores(torch.zeros(2), torch.zeros(2, dtype=torch.int64), how)
    with pytest.raises(InputError, match="got NaN"):
        reduce_scores(torch.tensor([torch.nan]), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="2 scores, got 1"):
        reduce_scores(torch.zeros(2), torch.zeros(1, dtype=torch.int64))
