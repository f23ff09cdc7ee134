"""The band of attention entropy: closed forms, the measure of that name, what is left out."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.measure import attention_entropy
from sonde.train import AttentionEntropy


def causal(n=5, heads=3):
    draw = torch.Generator().manual_seed(4)
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    scores = 2 * torch.randn(2, heads, n, n, generator=draw, dtype=torch.float64)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1), mask


@pytest.mark.truth("closed form: entropies of a causal even spread and of one key")
def test_even_and_collapsed_heads():
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    even = mask / mask.sum(1, keepdim=True).double()
    probs = torch.stack((even, torch.eye(4, dtype=torch.float64)))[None]
    loss = AttentionEntropy(0.7, 0.2, learned=False)
    # shares 1 and 0 on rows 2 to 4; beyond the band by .1 and by .5
    assert float(loss(probs, mask)) == pytest.approx((0.1**2 + 0.5**2) / 2)
    assert float(loss(probs[:, :1], mask)) == pytest.approx(0.1**2)


@pytest.mark.truth("sonde.measure.attention_entropy, and a loop over queries")
def test_the_share_is_the_measured_number():
    probs, mask = causal()
    loss = AttentionEntropy(0.0, 0.0, learned=False)
    shares = []
    for row in probs.flatten(0, 1):
        for i in range(1, 5):
            p = row[i, : i + 1]
            shares.append(float(-(p * p.log()).sum()) / math.log(i + 1))
    found = attention_entropy(probs, causal=True)
    assert found.value == pytest.approx(sum(shares) / len(shares), rel=1e-12)
    expected = sum(s * s for s in shares) / len(shares)
    assert float(loss(probs, mask)) == pytest.approx(expected, rel=1e-10)
    assert float(loss(probs, mask.expand(2, 5, 5))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.truth("closed form: the gradient of the entropy is -p (log p + H)")
def test_gradients_reach_scores_and_thresholds_and_no_hidden_key():
    scores = torch.tensor([[[[1.0, -0.5, 2.0, 9.0]]]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    probs = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    loss = AttentionEntropy(0.2, 0.1).double()
    value = loss(probs, mask)
    value.backward()
    p = probs.detach()[0, 0, 0, :3]
    nats = -(p * p.log()).sum()
    beyond = nats / math.log(3) - 0.2 - 0.1
    slope = 2 * beyond / math.log(3) * -p * (p.log() + nats)
    torch.testing.assert_close(scores.grad[0, 0, 0], torch.cat((slope, torch.zeros(1).double())))
    torch.testing.assert_close(
        loss.threshold.grad.double(), -2 * beyond.reshape(1), rtol=1e-6, atol=0
    )


def test_nothing_to_hold_and_bad_parameters():
    alone = torch.ones(2, 1, 3, 1)
    assert float(AttentionEntropy()(alone)) == 0.0
    with pytest.raises(InputError, match=r"threshold in \[0, 1\]"):
        AttentionEntropy(1.2)


def test_rows_and_weights_that_are_no_probabilities_are_refused():
    with pytest.raises(InputError, match=r"expected attention .* got shape \(8, 5\)\. Attach"):
        AttentionEntropy()(torch.randn(8, 5))
    with pytest.raises(InputError, match=r"sum to 1 .* off by 1\. Pass weights after the softmax"):
        AttentionEntropy()(torch.full((2, 1, 3, 4), 0.5))
