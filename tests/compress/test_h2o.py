"""Tokens that received the most attention stay, beside the newest."""

import pytest
import torch

from compress.cache_case import N_TOKENS, attentions, best, kept
from sonde.compress import H2O
from sonde.core import InputError

NEWEST = set(range(N_TOKENS - 3, N_TOKENS))


@pytest.mark.truth("the model's own attentions, summed over queries")
def test_the_most_attended_tokens_stay_with_the_newest():
    received = attentions().sum(1)

    assert kept(H2O(7)) == best(received, 7, NEWEST)  # 7 * .5 = 3 newest
    assert kept(H2O(7, recent=0.0)) == best(received, 7)


@pytest.mark.truth("the model's own attentions, averaged over the queries that could see a token")
def test_observed_attention_is_a_mean():
    received = attentions().sum(1) / torch.arange(N_TOKENS, 0, -1)

    assert kept(H2O(6, recent=0.5, observed=True)) == best(received, 6, NEWEST)
    for budget in range(2, 12):
        assert kept(H2O(budget, recent=0.0, observed=True)) == best(received, budget)


def test_a_share_above_1_is_refused():
    with pytest.raises(InputError, match=r"recent in \[0, 1\], got 1\.5"):
        H2O(4, recent=1.5)
