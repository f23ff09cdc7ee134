import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sonde.core.errors import InputError, ShapeError
from sonde.measure import attention_entropy


def even_causal(n):
    return torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1.0, n + 1)[:, None]


@pytest.mark.truth("closed form: means of ln i over causal rows")
@pytest.mark.parametrize(("n", "mean_log"), [(8, 1.3255753629), (128, 3.8781678007)])
def test_an_even_causal_head_has_one(n, mean_log):
    result = attention_entropy(even_causal(n)[None], causal=True)
    assert result.value == pytest.approx(1.0, rel=1e-9)
    assert result.null == 1.0  # an even head has nothing to see
    assert result.n == n - 1
    assert result.overloaded.tolist() == [1.0]
    assert result.entropy_nats is not None
    # the first query sees one key and is no row
    assert float(result.entropy_nats[0]) == pytest.approx(mean_log * n / (n - 1), rel=1e-9)


@pytest.mark.truth("scipy's entropy of one query")
def test_known_entropy():
    row = [0.7, 0.1, 0.1, 0.1]
    result = attention_entropy(torch.tensor([[row]], dtype=torch.float64))
    assert result.entropy_nats is not None
    assert result.sink is not None
    assert float(result.entropy_nats[0]) == pytest.approx(entropy(row), rel=1e-9)
    assert result.value == pytest.approx(entropy(row, base=4), rel=1e-9)
    assert float(result.sink[0]) == pytest.approx(0.7)
    one_hot = attention_entropy(torch.eye(4)[None])
    assert (one_hot.value, one_hot.collapsed.tolist()) == (0.0, [1.0])


@pytest.mark.truth("scipy's entropy of each query over the keys in sight")
def test_padding_and_the_future_are_no_keys():
    rng = np.random.default_rng(0)
    length = np.array([6, 4, 1])
    mask = np.arange(6)[None, None] < length[:, None, None]
    seen = mask & np.tri(6, dtype=bool)[None]
    probs = rng.random((3, 2, 6, 6)) * seen[:, None]
    probs /= probs.sum(-1, keepdims=True)
    result = attention_entropy(probs, mask, causal=True)
    want = [
        [entropy(probs[b, h, i]) / math.log(seen[b, i].sum()) for h in range(2)]
        for b in range(3)
        for i in range(6)
        if seen[b, i].sum() > 1
    ]
    np.testing.assert_allclose(result.entropy, np.mean(want, 0), rtol=1e-9)
    assert result.n == len(want)


@pytest.mark.truth("the spread over fresh draws of alike queries")
def test_the_error_counts_examples():
    found = []
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        own = 2 * torch.randn(30, 1, 1, 8, generator=g)
        noise = 0.2 * torch.randn(30, 2, 5, 8, generator=g)
        found.append(attention_entropy(torch.softmax(own + noise, -1)))
    spread = np.std([float(r) for r in found], ddof=1)
    assert 0.7 < np.mean([float(torch.as_tensor(r.se)) for r in found]) / spread < 1.4


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="sum to 1 over the keys that are not masked"):
        attention_entropy(torch.full((1, 4, 4), 0.25), causal=True)
    with pytest.raises(InputError, match="expected at least one query that attends to two keys"):
        attention_entropy(torch.ones(1, 3, 1))
    with pytest.raises(ShapeError, match=r"\(example, head, query, key\), got shape \(4, 4\)"):
        attention_entropy(torch.eye(4))
    with pytest.raises(ShapeError, match="expected a mask that broadcasts"):
        attention_entropy(torch.eye(4)[None], torch.ones(3))


@pytest.mark.truth("entropies of the keys up to each query, by hand")
def test_the_last_queries_of_a_longer_text_see_what_came_before():
    p = torch.tensor([[[[0.7, 0.1, 0.2, 0.0], [0.4, 0.3, 0.2, 0.1]]]])
    found = attention_entropy(p, causal=True)
    by_hand = [-(row[row > 0] * row[row > 0].log()).sum() for row in p[0, 0]]
    shares = [by_hand[0] / math.log(3), by_hand[1] / math.log(4)]
    assert float(found.value) == pytest.approx(float(sum(shares)) / 2, rel=1e-6)
