"""Log-probabilities of answers of several tokens, one token at a time."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import AnswerMargin

LENGTHS = (2, 1)


@pytest.fixture(scope="module")
def pairs():
    """Two pairs of texts on the right side of their padding, with logits."""
    source = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor([6, 5, 4, 6])[:, None]
    tokens = torch.randint(1, 9, (4, 6), generator=source) * mask
    return torch.randn(4, 6, 9, generator=source), tokens, mask


def _by_hand(logits, tokens, mask, row, length):
    n = int(mask[row].sum())
    log_p = logits[row].double().log_softmax(-1)
    return sum(float(log_p[i - 1, tokens[row, i]]) for i in range(n - length, n))


@pytest.mark.truth("a sum over the tokens of each answer, text by text")
def test_the_margin_is_the_difference_of_sums_over_tokens(pairs):
    logits, tokens, mask = pairs
    fixed = AnswerMargin(*LENGTHS).fixed(logits, tokens, mask)
    want = [
        _by_hand(logits, tokens, mask, row, 2) - _by_hand(logits, tokens, mask, row + 1, 1)
        for row in (0, 2)
    ]
    assert fixed.of(logits).tolist() == pytest.approx(want, rel=1e-5)
    twice = fixed.tiled(2).of(torch.cat([logits, 2 * logits]))
    assert twice[:2].tolist() == pytest.approx(want, rel=1e-5)
    later = [
        _by_hand(2 * logits, tokens, mask, row, 2) - _by_hand(2 * logits, tokens, mask, row + 1, 1)
        for row in (0, 2)
    ]
    assert twice[2:].tolist() == pytest.approx(later, rel=1e-5)


@pytest.mark.truth("log-softmax at the places before each token")
def test_distributions_are_those_that_the_tokens_are_drawn_from(pairs):
    logits, tokens, mask = pairs
    found = AnswerMargin(*LENGTHS).fixed(logits, tokens, mask).log_probs(logits)
    places = [(0, 4), (0, 5), (2, 2), (2, 3), (1, 4), (3, 5)]
    want = torch.stack([logits[row, at - 1].log_softmax(-1) for row, at in places])
    torch.testing.assert_close(found, want)


def test_odd_numbers_of_texts_and_no_tokens_are_refused(pairs):
    logits, tokens, mask = pairs
    with pytest.raises(InputError, match="pairs of tokenised texts"):
        AnswerMargin(*LENGTHS).fixed(logits[:3], tokens[:3], mask[:3])
    with pytest.raises(InputError, match="got inputs without tokens"):
        AnswerMargin(*LENGTHS).fixed(logits, None, None)
    assert "log-probability of the 2 tokens" in AnswerMargin(*LENGTHS).name
