"""A queue of past states: filters against a loop, streams against the whole, attention by hand."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.layers import StateQueue


def made(**parameters):
    torch.manual_seed(3)
    layer = StateQueue(3, **parameters).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += torch.randn(p.shape, dtype=p.dtype)
    return layer


def states(n=12):
    return torch.randn(2, n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.truth("a loop over steps and taps")
@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_a_filter_is_a_loop(gated):
    layer, x = made(length=3, stride=2, lookahead=2, gated=gated), states()

    def sums(taps):
        made = torch.zeros_like(x)
        steps = (-2, -4, -6, 2, 4)
        for t in range(12):
            for a, step in zip(taps, steps, strict=True):
                if 0 <= t + step < 12:
                    made[:, t] += a * x[:, t + step]
        return made

    gate = sums(layer.gate_taps).sigmoid() if gated else 1.0
    torch.testing.assert_close(layer(x), x + sums(layer.taps) * gate)


@pytest.mark.truth("1 + (k - 1) (1 + 2 + 4) = 15 steps for three layers of k = 3, 31 for four")
@pytest.mark.parametrize(("depth", "reach"), [(3, 15), (4, 31)])
def test_the_receptive_field_of_a_stack(depth, reach):
    stack = nn.Sequential(*(made(length=2, stride=2**i) for i in range(depth)))
    x = states(40).requires_grad_()
    stack(x)[0, -1].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(1).nonzero().flatten()
    assert 40 - int(seen.min()) == reach
    assert int((x.grad[1] != 0).sum()) == 0


@pytest.mark.truth("the whole text in one call")
@pytest.mark.parametrize("read", ["filter", "attention"])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
@torch.no_grad()
def test_a_stream_in_pieces_is_the_whole(read, size):
    given = {"stride": 2} if read == "filter" else {"read": read}
    layer, x = made(length=3, streaming=True, **given), states()
    whole = made(length=3, **given)(x)
    for _ in range(2):
        layer.reset()
        pieces = torch.cat([layer(x[:, i : i + size]) for i in range(0, 12, size)], 1)
        torch.testing.assert_close(pieces, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.truth("attention over the queue, step by step; a full write is a shift")
@torch.no_grad()
def test_attention_asks_the_states_before():
    layer, x = made(length=3, read="attention"), states()
    q, k, v = (layer.maps[name](x[0]) for name in ("query", "key", "value"))
    wanted = x[0].clone()
    for t in range(1, 12):
        past = list(range(max(0, t - 3), t))
        share = (k[past] @ q[t] / 3**0.5).softmax(0)
        wanted[t] += layer.gate * (share @ v[past])
    torch.testing.assert_close(layer(x)[0], wanted)
    soft = made(length=3, read="attention", push="soft")
    soft.load_state_dict(layer.state_dict() | {"write": torch.tensor(50.0)})
    torch.testing.assert_close(soft(x), layer(x))
    soft.write.fill_(0.4)
    share, slots = torch.tensor(0.4).double().sigmoid(), torch.zeros(3, 3, dtype=torch.float64)
    for t in range(3):
        slots = share * torch.cat([x[0, t : t + 1], slots[:-1]]) + (1 - share) * slots
    weight = (soft.maps["key"](slots) @ q[3] / 3**0.5).softmax(0)
    torch.testing.assert_close(
        soft(x)[0, 3], x[0, 3] + soft.gate * (weight @ soft.maps["value"](slots))
    )


def test_an_empty_queue_is_the_identity_and_what_is_wrong_is_said():
    x = states()
    assert torch.equal(made(length=0)(x), x)
    for given, message in (
        ({"length": -1}, "length and lookahead of 0 or more"),
        ({"streaming": True, "lookahead": 1}, "streaming has no later states"),
        ({"read": "attention", "stride": 2}, "only used with read='filter'"),
        ({"push": "soft"}, "only used with read='attention'"),
    ):
        with pytest.raises(InputError, match=message):
            StateQueue(3, **given)
    with pytest.raises(InputError, match="no mask while streaming"):
        made(streaming=True)(x, mask=torch.ones(2, 12, dtype=torch.bool))


@pytest.mark.truth("torch's dilated convolutions of single channels, and dense layers by hand")
@torch.no_grad()
def test_a_bottleneck_with_dense_queues_is_a_stack_of_convolutions():
    layer, x = made(length=2, gated=True, bottleneck=2, depth=3), states(20)
    module = layer.module

    def memory(h, taps, stride):
        kernel = taps.flip(0).T.unsqueeze(1)  # a convolution's last weight is on the newest state
        late = nn.functional.pad(h.transpose(1, 2), (2 * stride, 0))[..., :-stride]
        return nn.functional.conv1d(late, kernel, dilation=stride, groups=2)[..., :20].mT

    told = [nn.functional.prelu(x @ module.enter.weight.T + module.enter.bias, module.bend.weight)]
    for i, queue in enumerate(module.queues):
        join = module.joins[i - 1]
        h = torch.cat(told, 2) @ join.weight.T + join.bias if i else told[0]
        gate = memory(h, queue.gate_taps, 2**i).sigmoid()
        told.append(h + memory(h, queue.taps, 2**i) * gate)
    wanted = x + told[-1] @ module.leave.weight.T + module.leave.bias
    torch.testing.assert_close(layer(x), wanted)


@torch.no_grad()
def test_a_stream_through_a_bottleneck_is_the_whole_and_starts_anew():
    given = {"length": 2, "gated": True, "bottleneck": 2, "depth": 2}
    layer, x = made(streaming=True, **given), states()
    whole = made(**given)(x)
    for _ in range(2):
        pieces = torch.cat([layer(x[:, i : i + 5]) for i in range(0, 12, 5)], 1)
        torch.testing.assert_close(pieces, whole, rtol=1e-13, atol=1e-13)
        layer.reset()
    with pytest.raises(InputError, match="depth of 1, or more with a bottleneck"):
        StateQueue(3, depth=2)


@pytest.mark.truth("attention over the queues of a scene, one agent and one step at a time")
@pytest.mark.parametrize("push", ["shift", "soft"])
@torch.no_grad()
def test_agents_read_the_queues_of_their_scene(push):
    layer = made(length=2, read="attention", push=push)
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(5, 4, 3, generator=draw, dtype=torch.float64)
    scene, real = torch.tensor([7, 2, 7, 7, 2]), torch.ones(5, 4, dtype=torch.bool)
    real[3, 1] = False
    share = float(layer.write.sigmoid()) if push == "soft" else 1.0
    held = torch.zeros(5, 2, 3, dtype=torch.float64)
    filled = torch.zeros(5, 2, dtype=torch.bool)
    wanted = x.clone()
    for t in range(4):
        for a in range(5):
            slots = [held[b, i] for b in range(5) if scene[b] == scene[a]
                     for i in range(2) if filled[b, i]]  # fmt: skip
            if slots and real[a, t]:
                q = layer.maps["query"](x[a, t])
                score = torch.stack([layer.maps["key"](s) @ q for s in slots]) / 3**0.5
                value = torch.stack([layer.maps["value"](s) for s in slots])
                wanted[a, t] += layer.gate * (score.softmax(0) @ value)
        for a in range(5):
            if push == "shift":
                new = x[a, t] * real[a, t]
                held[a], filled[a] = (
                    torch.stack([new, held[a, 0]]),
                    torch.stack([real[a, t], filled[a, 0]]),
                )
            elif real[a, t]:
                held[a] = share * torch.stack([x[a, t], held[a, 0]]) + (1 - share) * held[a]
                filled[a] = torch.stack([torch.tensor(True), filled[a, 0]])
    found = layer(x, real, scene=scene)
    torch.testing.assert_close(found[real], wanted[real])
    alone = layer(x, real, scene=torch.arange(5))
    torch.testing.assert_close(alone, layer(x, real))
    assert not torch.allclose(alone[real], wanted[real])


def test_scenes_of_a_filter_are_refused():
    for layer in (made(length=2), made(length=2, read="attention", streaming=True)):
        with pytest.raises(InputError, match="scenes are only used with read='attention'"):
            layer(states(), scene=torch.zeros(2, dtype=torch.long))
