"""Attention over a second source: two softmaxes, none at scale 0."""

import pytest
import torch

from sonde.core import InputError, ShapeError
from sonde.layers import DecoupledCrossAttention, drop_sources, shuffle_sources


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(queries, keys, values):
    return (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1) @ values


@pytest.mark.truth("two attentions, summed by hand")
@torch.no_grad()
def test_the_second_source_has_a_softmax_of_its_own():
    queries, text, image = rows(0, 2, 3, 5, 4), rows(1, 2, 3, 6, 4), rows(2, 2, 4, 7)
    heads = attention(queries, text, text)
    layer = DecoupledCrossAttention.of(rows(3, 12, 7), rows(4, 12, 7), n_heads=3, scale=0.7)
    keys = (image @ layer.key.weight.T).reshape(2, 4, 3, 4).transpose(1, 2)
    values = (image @ layer.value.weight.T).reshape(2, 4, 3, 4).transpose(1, 2)
    found = layer(heads, queries, image)
    torch.testing.assert_close(found, heads + 0.7 * attention(queries, keys, values))
    both = torch.cat((text, keys), 2), torch.cat((text, values), 2)
    assert not torch.allclose(found, attention(queries, *both), atol=0.1)


@torch.no_grad()
def test_scale_zero_and_an_empty_source_change_no_bit():
    heads, queries = rows(0, 2, 3, 5, 4), rows(1, 2, 3, 5, 4)
    layer = DecoupledCrossAttention(7, 3, 4)
    assert layer(heads, queries, torch.zeros(2, 0, 7)) is heads
    layer.scale = 0.0
    assert layer(heads, queries, rows(2, 2, 4, 7)) is heads
    layer.scale = 1.0
    with pytest.raises(ShapeError, match="a multiple of 3 heads"):
        DecoupledCrossAttention.of(rows(3, 10, 7), rows(4, 10, 7), n_heads=3)


@pytest.mark.truth("the second attention alone, by hand")
def test_the_first_source_is_switched_off_and_gets_no_gradient():
    heads, queries, image = rows(0, 2, 3, 5, 4), rows(1, 2, 3, 5, 4), rows(2, 2, 4, 7)
    layer = DecoupledCrossAttention(7, 3, 4, scale=0.7, first_scale=0.0)
    heads.requires_grad_()
    keys, values = (
        (image @ part.weight.T).reshape(2, 4, 3, 4).transpose(1, 2)
        for part in (layer.key, layer.value)
    )
    alone = layer(heads, queries, image)
    torch.testing.assert_close(alone, 0.7 * attention(queries, keys, values))
    alone.sum().backward()
    assert heads.grad is not None
    assert not heads.grad.any()
    layer.first_scale = 1.0
    torch.testing.assert_close(layer(heads, queries, image), heads + alone)


def test_each_source_is_dropped_as_often_as_asked():
    first, second = drop_sources(60_000, 0.05)
    only, other, both = first & ~second, second & ~first, first & second
    for share in (only, other, both):
        assert float(share.float().mean()) == pytest.approx(0.05, abs=0.004)


@pytest.mark.truth("groups, counted one by one")
def test_sources_are_shuffled_within_their_groups_as_often_as_asked():
    group = torch.arange(9_000) % 300
    read = shuffle_sources(group, 0.3)
    assert torch.equal(group[read], group)
    assert float((read != torch.arange(9_000)).float().mean()) == pytest.approx(0.3, abs=0.02)
    chosen = torch.bincount(
        torch.stack(
            [shuffle_sources(torch.zeros(4, dtype=torch.int), 1.0, seed=i) for i in range(600)]
        )[:, 0],
        minlength=4,
    )
    assert chosen[0] == 0
    assert chosen[1:].tolist() == pytest.approx([200] * 3, abs=50)


def test_what_is_alone_in_its_group_keeps_its_source():
    assert shuffle_sources(torch.arange(5), 1.0).tolist() == [0, 1, 2, 3, 4]
    assert shuffle_sources(torch.zeros(5, dtype=torch.int), 0.0).tolist() == [0, 1, 2, 3, 4]
    assert shuffle_sources(torch.zeros(0, dtype=torch.int)).tolist() == []
    with pytest.raises(InputError, match=r"fraction in \[0, 1\], got groups of shape \(2,\) and 2"):
        shuffle_sources(torch.zeros(2, dtype=torch.int), 2.0)
