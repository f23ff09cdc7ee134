"""Tokens stay by the attention that queries still to come are expected to pay."""

import math
from dataclasses import replace

import pytest
import torch

import models
from compress.cache_case import kept, net
from sonde import Model
from sonde.compress import ExpectedAttention, expected_attention_of
from sonde.core import CachedTokens, ComingRotation, InputError, QueryMoments
from sonde.data import open_inputs

SCALE, WIDTH, N = 0.7, 4, 6


class Turns(ComingRotation):
    """Two planes that turn at different speeds."""

    def each(self, n):
        found = torch.zeros(1, n, WIDTH, WIDTH)
        for step in range(n):
            for plane, speed in enumerate((0.9, 0.2)):
                angle = speed * (step + 3)
                at = slice(2 * plane, 2 * plane + 2)
                cos, sin = math.cos(angle), math.sin(angle)
                found[0, step, at, at] = torch.tensor([[cos, -sin], [sin, cos]])
        return found

    def mean(self, n):
        return self.each(n).mean(1)


def case():
    """One text with two query heads on one key head."""
    draw = torch.Generator().manual_seed(6)
    keys, values = torch.randn(2, 1, 1, N, WIDTH, generator=draw)
    half = 0.4 * torch.randn(1, 2, WIDTH, WIDTH, generator=draw)
    n = torch.tensor([40])
    moments = QueryMoments(n, torch.randn(1, 2, WIDTH, generator=draw), 40 * half @ half.mT)
    index = torch.arange(N)[None, None]
    seen = CachedTokens(index, torch.tensor([N]), torch.tensor([3]), None, moments, Turns(), SCALE)
    return keys, values, half, moments, seen


def drawn(keys, values, half, moments, turns):
    """Return expected exponentials over drawn queries, as shares, times the lengths of values."""
    draw = torch.Generator().manual_seed(1)
    found = torch.zeros(N, dtype=torch.float64)
    for head in range(2):
        q = torch.randn(400_000, WIDTH, generator=draw) @ half[0, head].T + moments.mean[0, head]
        total = torch.zeros(N, dtype=torch.float64)
        for turn in turns:
            total += (SCALE * (q @ turn.T) @ keys[0, 0].T).double().exp().mean(0)
        found += total / total.sum() / 2
    return found * values[0, 0].double().norm(dim=-1)


@pytest.mark.truth("a mean over 400,000 drawn queries")
@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_expectations_over_normal_queries(exact):
    keys, values, half, moments, seen = case()
    turns = Turns().each(5)[0]
    expected = drawn(keys, values, half, moments, turns if exact else turns.mean(0)[None])
    found = ExpectedAttention(horizon=5, n_first=0, exact=exact).score(keys, values, seen)[0, 0]
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.0)


def test_the_first_tokens_stay_and_the_key_that_queries_point_at():
    draw = torch.Generator().manual_seed(3)
    q = torch.tensor([2.0, 0.0, 0.0, 0.0]) + 0.1 * torch.randn(1, 1, 30, 4, generator=draw)
    keys = torch.randn(1, 1, 9, 4, generator=draw) * 0.1
    keys[0, 0, 5, 0] = 3.0
    moments = QueryMoments.of(q, torch.ones(1, 30, dtype=torch.bool))
    seen = CachedTokens(torch.arange(9)[None, None], torch.tensor([9]), torch.tensor([3]),
                        None, moments, None, 0.5)  # fmt: skip
    scores = ExpectedAttention(3, n_first=2).score(keys, torch.ones_like(keys), seen)[0, 0]
    assert scores.topk(3).indices.sort().values.tolist() == [0, 1, 5]


def test_moments_of_texts_serve_in_place_of_those_of_the_prompt():
    draw = torch.Generator().manual_seed(8)
    texts = [torch.randint(5, models.VOCABULARY, (n,), generator=draw) for n in (12, 7, 9)]
    model = Model(net(), config=net().config, task="causal")
    rule = ExpectedAttention(6, horizon=8, n_first=1)
    fitted = expected_attention_of(
        model, open_inputs(model, [{"input_ids": x} for x in texts], batch_size=2), rule, False
    )
    moments = [one.queries for one in fitted.values() if one.queries is not None]
    assert [int(x.n) for x in moments] == [11 + 6 + 8] * 3
    single = open_inputs(model, [{"input_ids": x} for x in texts], batch_size=1)
    again = expected_attention_of(model, single, rule, False)[1].queries
    assert again is not None
    torch.testing.assert_close(moments[1].covariance, again.covariance, rtol=1e-4, atol=1e-6)
    assert fitted[1].reads_queries() is None
    opposite = replace(moments[1], mean=-300 * moments[1].mean)
    others = kept(replace(rule, queries=opposite))
    assert [len(head) for head in others] == [6, 6]
    assert others != kept(fitted[1])
    assert all(head[0] == 0 for head in others)


def test_a_horizon_of_nothing_is_refused():
    with pytest.raises(InputError, match="horizon of at least 1, got 0"):
        ExpectedAttention(horizon=0)
