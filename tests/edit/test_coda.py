"""Overshadowed tokens: on a table of bigrams, as a rule, and the law of their rate."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sonde.core import InputError
from sonde.edit import CoDa, log_linear
from sonde.tap import DecodeContext
from sonde.testing import check

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
PRIOR = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]], dtype=torch.float64)


@pytest.mark.truth("the formula on probabilities")
def test_conditional_tables():
    rule = CoDa(strength=0.8, plausible=0.2, bonus=0.5)
    found = rule.step(P.log() + 1, DecodeContext({"overlooking": PRIOR.log() - 1})).exp()
    mine = 0.2 * P.amax(1, keepdim=True) <= P
    only = mine & ~(0.2 * PRIOR.amax(1, keepdim=True) <= PRIOR)
    expected = P * (P / PRIOR) ** 0.8 * (0.5 * only.double()).exp() * mine
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert bool(only.any())


def test_the_same_prompt_is_plain_decoding():
    found = CoDa(plausible=1e-9).step(P.log(), DecodeContext({"overlooking": P.log()}))
    torch.testing.assert_close(found, P.log(), rtol=0, atol=1e-12)


def keyword(ids: Tensor, mask: Tensor) -> Tensor:
    """Return logits that the token 5 moves much, the token 6 little, the others not at all."""
    found = torch.zeros(len(ids), 4)
    found[:, 0] += 2.0 * ((ids == 5) & mask).any(1)
    found[:, 1] += 0.02 * ((ids == 6) & mask).any(1)
    return found


@pytest.mark.truth("planted: which token moves the next one")
def test_tokens_that_move_nothing_are_left_out():
    ids = torch.tensor([[0, 7, 5, 6, 8], [9, 6, 7, 7, 5]])
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    found = CoDa(threshold=0.05).overshadowed(ids, mask, keyword)
    assert found.tolist() == [
        [False, True, False, True, False],
        [True, True, True, True, False],
    ]
    kept, real = CoDa(threshold=0.05).without_overshadowed(ids, mask, keyword)
    assert [row[m].tolist() for row, m in zip(kept, real, strict=True)] == [[5, 8], [5]]
    assert not CoDa(threshold=0.0).overshadowed(ids, mask, keyword).any()


@pytest.mark.truth("planted: half a nat, and two")
def test_the_default_finds_a_word_that_moves_something():
    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([0.5 * ((ids == 6) & mask).any(1), 2.0 * ((ids == 5) & mask).any(1)], 1)

    found = CoDa().overshadowed(torch.tensor([[6, 5, 9]]), torch.ones(1, 3).bool(), logits)
    assert found.tolist() == [[True, False, False]]


@pytest.mark.slow
def test_laws():
    check(CoDa(threshold=0.5, plausible=0.01))


@pytest.mark.truth("numpy's weighted polynomial fit, and a planted line")
def test_the_law_is_the_weighted_line():
    generator = np.random.default_rng(0)
    ratio, trials = 2.0 ** np.arange(8), np.full(8, 4000)
    hits = generator.binomial(trials, 0.1 + 0.06 * np.log(ratio))
    law = log_linear(ratio.tolist(), hits.tolist(), trials.tolist())
    smooth = (hits + 0.5) / (trials + 1)
    weight = trials / (smooth * (1 - smooth))
    line, cov = np.polyfit(np.log(ratio), hits / trials, 1, w=weight**0.5, cov="unscaled")
    assert law.value == pytest.approx(line[0], rel=1e-9)
    assert law.intercept == pytest.approx(line[1], rel=1e-9)
    assert [law.se, law.intercept_se] == pytest.approx(np.sqrt(np.diag(cov)).tolist(), rel=1e-9)
    assert float(law.value) == pytest.approx(0.06, abs=4 * float(law.se or 0.0))
    assert law.misfit > 0.01
    bent = log_linear(ratio.tolist(), [100, 100, 100, 100, 100, 100, 100, 3000], trials.tolist())
    assert bent.misfit < 1e-9
    assert bent.r2 < law.r2
    falls = log_linear(ratio.tolist(), hits[::-1].tolist(), trials.tolist())
    assert falls.range[0] < float(falls.value) < 0 < float(law.value) < law.range[1]


def test_what_is_refused():
    with pytest.raises(InputError, match="two different ratios"):
        log_linear([2.0, 2.0], [1, 2], [5, 5])
    with pytest.raises(InputError, match="hits <= trials"):
        log_linear([2.0, 3.0], [1, 6], [5, 5])
    with pytest.raises(InputError, match="threshold of at least 0"):
        CoDa(threshold=-1.0)
