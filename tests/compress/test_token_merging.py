"""Tokens that are alike are merged inside a model."""

from typing import Any

import pytest
import torch

import models
import sonde
from sonde.compress import TokenMerging
from sonde.core import InputError, InsideTokens, SiteError, TokenRule


class Once(TokenRule):
    """Merges behind the first block alone."""

    counts_sizes = True
    rule = TokenMerging(8 / 17)

    def acts(self, block, n_blocks):
        return block == 0

    def reduce(self, seen):
        return self.rule.reduce(seen)


def twins() -> tuple[Any, torch.Tensor]:
    """Return a float64 ViT that cannot tell places, and images whose patches come in pairs."""
    net: Any = models.vit().double().eval()
    with torch.no_grad():
        net.vit.embeddings.position_embeddings.zero_()
    half = torch.randn(2, 3, 24, 12, generator=torch.Generator().manual_seed(3)).double()
    columns = half.reshape(2, 3, 24, 2, 6)
    return net, columns[:, :, :, [0, 0, 1, 1]].reshape(2, 3, 24, 24)


@pytest.mark.truth("the plain model: equal tokens count as often as they stand there")
def test_equal_tokens_merge_without_loss():
    net, x = twins()
    with torch.no_grad():
        expected = net(x, output_hidden_states=True)
        with sonde.shortening(net, Once()) as run:
            found = net(x)
    assert run.counts == [9, 9, 9]
    assert run.size is not None
    assert run.size[0].tolist() == [1.0] + [2.0] * 8
    assert run.index is not None
    assert run.index[1].tolist() == [0] + [1 + i // 2 for i in range(16)]
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.0, atol=1e-12)
    with torch.no_grad(), sonde.shortening(net, TokenMerging(2 / 17)) as run:
        net(x)
    assert run.counts == [15, 13, 13]  # behind the last block nothing is left to save


@pytest.mark.truth("a loop over pairs of tokens, most similar first")
def test_the_most_similar_pairs_merge():
    draw = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 2, 12, 5, generator=draw)
    real = torch.ones(1, 12, dtype=torch.bool)
    size = torch.ones(1, 12)
    seen = InsideTokens(keys, None, real, size, torch.tensor([12]))
    mean = keys[0].mean(0)
    pairs = []
    for i in range(3, 12, 2):
        scores = {j: float(torch.cosine_similarity(mean[i], mean[j], 0)) for j in range(2, 12, 2)}
        best = max(scores, key=lambda j: scores[j])
        pairs.append((scores[best], i, best))
    expected = list(range(12))
    for _, i, j in sorted(pairs, reverse=True)[:3]:
        expected[i] = j
    assert TokenMerging(0.25, protected=2).reduce(seen).leader[0].tolist() == expected


def test_a_share_of_nothing_changes_no_bit():
    net = models.vit().eval()
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x).logits
        with sonde.shortening(net, TokenMerging(0.0)):
            assert torch.equal(net(x).logits, expected)


def test_what_cannot_be_shortened_says_so():
    with pytest.raises(InputError, match="merge in"):
        TokenMerging(0.7)
    with (
        pytest.raises(SiteError, match="blocks with an attention"),
        sonde.shortening(models.cnn(), TokenMerging()),
    ):
        pass
