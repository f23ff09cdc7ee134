"""Laws of rules that reduce the number of tokens inside a model."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.token_rule import InsideTokens, TokenRule

N_ROWS, N_HEADS, N_TOKENS, WIDTH = 2, 3, 9, 4
PADDING = 3
"""Tokens at the end of the second row that are padding."""


def inside() -> InsideTokens:
    """Return tokens of two rows, where some represent several tokens and row two is padded."""
    draw = torch.Generator().manual_seed(5)
    keys = torch.randn(N_ROWS, N_HEADS, N_TOKENS, WIDTH, generator=draw)
    real = torch.ones(N_ROWS, N_TOKENS, dtype=torch.bool)
    real[1, -PADDING:] = False
    received = torch.rand(N_ROWS, N_TOKENS, generator=draw) * real
    size = torch.randint(1, 4, (N_ROWS, N_TOKENS), generator=draw).float() * real
    return InsideTokens(keys, received, real, size, size.sum(1).long())


@cache
def encoder() -> nn.Module:
    """Return a small text encoder of transformers."""
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = BertConfig(
            vocab_size=32, hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32,
        )  # fmt: skip
        return BertModel(config).eval()


def texts() -> tuple[Tensor, Tensor]:
    """Return ids and mask of two texts; the second text is padded."""
    ids = torch.randint(3, 32, (2, 11), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


def law_leads(rule: TokenRule) -> None:
    """A token's leader is a real token that leads itself, or none; weights are positive."""
    seen = inside()
    reduced = rule.reduce(seen)
    leader, real = reduced.leader, seen.real
    assert leader.shape == real.shape, f"leaders of shape {tuple(leader.shape)}"
    own = leader.gather(1, leader.clamp(min=0))
    right = (leader < 0) | (own == leader)
    assert bool(right[real].all()), "a token's leader is itself led or dropped"
    led = real.gather(1, leader.clamp(min=0)) | (leader < 0)
    assert bool(led[real].all()), "a token's leader is padding"
    assert bool((reduced.weight[real] > 0).all()), "a weight is not positive"


def law_padding(rule: TokenRule) -> None:
    """The content of padding does not change the leader of a real token."""
    seen = inside()
    other = torch.where(seen.real[:, None, :, None], seen.keys, 1e3)
    reduced, expected = rule.reduce(replace(seen, keys=other)), rule.reduce(seen)
    same = torch.equal(reduced.leader[seen.real], expected.leader[seen.real])
    assert same, "tokens are led otherwise if padding holds other keys"


def law_alone(rule: TokenRule) -> None:
    """A row's tokens have equal leaders alone and in a batch with a longer row."""
    seen, n = inside(), N_TOKENS - PADDING
    assert seen.received is not None
    one = InsideTokens(
        seen.keys[1:, :, :n], seen.received[1:, :n], seen.real[1:, :n], seen.size[1:, :n],
        seen.n_input[1:],
    )  # fmt: skip
    together, alone = rule.reduce(seen).leader[1:, :n], rule.reduce(one).leader
    assert torch.equal(together, alone), f"{alone.tolist()} alone, {together.tolist()} in a batch"


def law_shape(rule: TokenRule) -> None:
    """Outputs keep their shape, rows are independent, and every token is counted.

    The model gives the same output afterwards.
    """
    from sonde.tap.tokens.shortening import shortening

    net: Any = encoder()
    ids, mask = texts()
    with torch.no_grad():
        plain = net(ids, attention_mask=mask).last_hidden_state
        with shortening(net, rule) as run:
            states = net(ids, attention_mask=mask).last_hidden_state
            assert run.index is not None
            assert run.size is not None
            assert bool((run.index[mask == 0] == -1).all()), "padding is in a token"
            counted = (run.index >= 0).sum(1).to(run.size)
            assert torch.equal(run.size.sum(1), counted), "sizes do not add up to the tokens"
            alone = net(ids[1:, :7], attention_mask=mask[1:, :7]).last_hidden_state
        again = net(ids, attention_mask=mask).last_hidden_state
    assert states.shape == plain.shape, f"shape {tuple(states.shape)} of {tuple(plain.shape)}"
    gap = float((states[1, :7] - alone[0]).abs().max())
    assert gap < 1e-5, f"a row moved by {gap:.3g} with the other rows of the batch"
    assert torch.equal(plain, again), "the model gives other states afterwards"
