"""Nets of four kinds against sums over the past by hand, byte by byte, and against later bytes."""

import pytest
import torch
from torch.nn.functional import silu, softmax

from sonde_studies._writer_nets import _KINDS, HEADS, KERNEL, MIXINGS, WIDTH, ByteNet
from sonde_studies.worlds.learning import drawn


@pytest.mark.parametrize("mixing", MIXINGS)
def test_bytes_in_parts_are_bytes_at_once_and_no_byte_sees_a_later_one(mixing):
    net = drawn(lambda: ByteNet(mixing), 3).eval()
    ids = torch.randint(256, (3, 41), generator=torch.Generator().manual_seed(4))
    whole, _ = net(ids)
    found, past, at = [], None, 0
    for n in (19, 1, 1, 7, 1, 12):
        logits, past = net(ids[:, at : at + n], past)
        found.append(logits)
        at += n
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)
    other = ids.clone()
    other[:, 30] = (other[:, 30] + 1) % 256
    new, _ = net(other)
    torch.testing.assert_close(new[:, :30], whole[:, :30])
    assert not torch.allclose(new[:, 30:], whole[:, 30:], atol=1e-3)


@pytest.mark.truth("states updated at one byte after the other")
def test_a_state_space_layer_is_a_recurrence():
    layer = drawn(_KINDS["state space"], 5)
    x = torch.randn(2, 21, WIDTH, generator=torch.Generator().manual_seed(6))
    keep = (-layer.rate.exp()).exp()
    state, put, found = torch.zeros(2, 2 * WIDTH), layer.into(x), []
    for t in range(21):
        state = keep * state + (1 - keep**2).sqrt() * put[:, t]
        found.append(layer.out(state * silu(layer.gate(x[:, t]))))
    torch.testing.assert_close(layer(x, None)[0], torch.stack(found, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.truth("attention of one query and one head, and weighted sums of the last bytes")
def test_attention_falls_off_with_distance_and_a_convolution_sees_the_last_bytes():
    x = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(7))
    layer, dim, head, query = drawn(_KINDS["attention"], 8), WIDTH // HEADS, 2, 6
    q, k, v = (part[0].unflatten(1, (HEADS, dim))[:, head] for part in layer.into(x).chunk(3, 2))
    lag = query - torch.arange(query + 1)
    weight = softmax(k[: query + 1] @ q[query] / dim**0.5 - lag / 16, 0)
    layer.out.weight.data = torch.eye(WIDTH)
    layer.out.bias.data.zero_()
    mixed = layer(x, None)[0][0, query].unflatten(0, (HEADS, dim))[head]
    torch.testing.assert_close(mixed, weight @ v[: query + 1], rtol=1e-4, atol=1e-5)

    layer = drawn(_KINDS["convolution"], 9)
    put = layer.into(x)[0]
    past = layer.kernel[:, 0, KERNEL - 1 - query :].T * put[: query + 1]
    made = layer.out(past.sum(0) * silu(layer.gate(x[0, query])))
    torch.testing.assert_close(layer(x, None)[0][0, query], made, rtol=1e-4, atol=1e-5)
