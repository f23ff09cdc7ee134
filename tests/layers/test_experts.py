"""Mixtures of experts, and of a weak and a strong head."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import Experts, WeakAndStrong


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


@pytest.mark.truth("value printed in the handbook, and a loop over states and experts")
def test_top_k():
    layer = filled(Experts(4, n_experts=4, k=2, shared=1, width=3))
    with torch.no_grad():
        layer.line.weight.copy_(torch.eye(4))
    shares = layer.shares(torch.tensor([2.0, 1.0, 0.0, -1.0]).double())
    assert shares.tolist() == pytest.approx([0.731059, 0.268941, 0.0, 0.0], abs=1e-6)
    layer, x = filled(layer), draw(2, 5, 4)
    found = layer(x)
    for i in range(2):
        for t in range(5):
            scores = layer.line(x[i, t])
            best = scores.topk(2).indices.tolist()
            parts = [scores[e].exp() * layer.experts[e](x[i, t]) for e in best]
            total = sum(scores[e].exp() for e in best)
            wanted = x[i, t] + sum(parts) / total + layer.always[0](x[i, t])
            torch.testing.assert_close(found[i, t], wanted)


@pytest.mark.truth("dense mixture, and closed form of the balance")
def test_all_experts_are_the_dense_mixture_and_balance():
    layer, x = filled(Experts(4, n_experts=3, k=3)), draw(7, 4)
    dense = torch.stack([e(x) for e in layer.experts], -1)
    torch.testing.assert_close(layer(x), x + (dense * layer.line(x).softmax(-1)[:, None]).sum(-1))
    one = Experts(4, n_experts=4, k=1).double()
    with torch.no_grad():
        one.line.weight.copy_(40.0 * torch.eye(4))
    spread = torch.eye(4).double()
    assert float(one.balance(spread).detach()) == pytest.approx(1.0)
    assert float(one.balance(spread[:1].expand(5, -1)).detach()) == pytest.approx(4.0)
    mask = torch.tensor([True, True, False, False])
    assert float(one.balance(spread, mask).detach()) == pytest.approx(2.0)


@pytest.mark.truth("each row by its own expert")
def test_labels_and_mean():
    layer, x = filled(Experts(4, router="label")), draw(3, 5, 4)
    found = layer(x, torch.tensor([2, 0, 2]))
    for i, e in enumerate((2, 0, 2)):
        torch.testing.assert_close(found[i], x[i] + layer.experts[e](x[i]))
    torch.testing.assert_close(layer(x), x + sum(e(x) for e in layer.experts) / 4)
    with pytest.raises(InputError, match="from 0 to 3"):
        layer(x, torch.tensor([0, 1, 4]))


@pytest.mark.truth("one dense network, and its parts switched off by hand")
@pytest.mark.parametrize(("scale", "factor"), [("share", 5 / 3), ("rms", (5 / 3) ** 0.5)])
def test_units(scale, factor):
    dense, x = filled(Experts(4, n_experts=5, over="units", k=3, shared=2)), draw(6, 4)
    torch.testing.assert_close(dense(x), x + dense.experts[0](x))
    layer = filled(Experts(4, n_experts=5, over="units", k=2, shared=1, width=3, scale=scale))
    up, act, down = layer.experts[0]
    for i in range(6):
        on = [0, *(1 + e for e in layer.line(x[i]).topk(2).indices.tolist())]
        hidden = act(up(x[i]))
        kept = torch.stack([hidden[j] * (j // 3 in on) for j in range(15)])
        torch.testing.assert_close(layer(x)[i], x[i] + down(factor * kept))
    with pytest.raises(InputError, match="k from 1 to 4 routed"):
        Experts(4, n_experts=5, over="units", k=5, shared=1)


@pytest.mark.truth("one dense network, its parts weighed and fused by loops over units")
@pytest.mark.parametrize("scale", ["scores", "none"])
@pytest.mark.parametrize("fusion", ["none", "groups", "dense"])
def test_scaled_and_fused_units(scale, fusion):
    given = {"over": "units", "k": 2, "shared": 1, "width": 3, "scale": scale, "fusion": fusion}
    layer, x = filled(Experts(4, n_experts=5, **given)), draw(6, 4)
    up, act, down = layer.experts[0]
    for row, found in zip(x, layer(x), strict=True):
        scores = layer.line(row).detach()
        routed = scores[1:] if scale == "scores" else scores
        on = [0, *(1 + e for e in routed.topk(2).indices.tolist())]
        chance = [float(scores[e].exp() / scores.exp().sum()) for e in on if scale == "scores"]
        weight = {e: 5 * g * sum(chance) for e, g in zip(on, chance, strict=False)}
        hidden = up(row) if fusion != "none" else act(up(row))
        kept = [hidden[j] * (weight.get(j // 3, 1.0) if j // 3 in on else 0.0) for j in range(15)]
        last = kept
        if fusion == "dense":
            last = [sum(kept[i] * layer.mixed[i, j] for i in range(15)) for j in range(15)]
        if fusion == "groups":
            inner = [sum(kept[p * 3 + i] * layer.within[p, i, j] for i in range(3))
                     for p in range(5) for j in range(3)]  # fmt: skip
            last = [sum(inner[p * 3 + j] * layer.across[j, p, q] for p in range(5))
                    for q in range(5) for j in range(3)]  # fmt: skip
        units = torch.stack(last)
        torch.testing.assert_close(found, row + down(units if fusion == "none" else act(units)))


@pytest.mark.truth("the network on each state, its off parts set to zero by hand")
@pytest.mark.parametrize("scale", ["share", "rms", "scores", "none"])
@pytest.mark.parametrize("fusion", ["none", "groups", "dense"])
def test_dims_of_the_state(scale, fusion):
    given = {"over": "dims", "k": 2, "shared": 1, "width": 7, "scale": scale, "fusion": fusion}
    layer, x = filled(Experts(15, n_experts=5, **given)), draw(6, 15)
    for row, found in zip(x, layer(x), strict=True):
        scores = layer.line(row).detach()
        routed = scores[1:] if scale == "scores" else scores
        on = [0, *(1 + e for e in routed.topk(2).indices.tolist())]
        chance = [float(scores[e].exp() / scores.exp().sum()) for e in on if scale == "scores"]
        alike = {"share": 5 / 3, "rms": (5 / 3) ** 0.5}.get(scale, 1.0)
        size = [alike] * 3 if scale != "scores" else [5 * g * sum(chance) for g in chance]
        weight = [sum(s for e, s in zip(on, size, strict=True) if e == i // 3) for i in range(15)]
        up, act, down = layer.experts[0]
        read = torch.stack([w * v for w, v in zip(weight, row, strict=True)])
        kept = [w * v for w, v in zip(weight, down(act(up(read))), strict=True)]
        added = kept
        if fusion == "dense":
            added = [sum(kept[i] * layer.mixed[i, j] for i in range(15)) for j in range(15)]
        if fusion == "groups":
            inner = [sum(kept[p * 3 + i] * layer.within[p, i, j] for i in range(3))
                     for p in range(5) for j in range(3)]  # fmt: skip
            added = [sum(inner[p * 3 + j] * layer.across[j, p, q] for p in range(5))
                     for q in range(5) for j in range(3)]  # fmt: skip
        torch.testing.assert_close(found, row + torch.stack(added))
        assert fusion != "none" or int((found != row).sum()) == 9


def test_a_net_of_ones_own_reads_and_changes_the_dims_that_are_on():
    turned = nn.Linear(12, 12, bias=False).double()
    layer, x = Experts(12, over="dims", k=1, net=turned, scale="none").double(), draw(3, 5, 12)
    on = torch.nn.functional.one_hot(layer.line(x).argmax(-1), 4).repeat_interleave(3, -1)
    torch.testing.assert_close(layer(x), x + on * ((on * x) @ turned.weight.T))
    torch.testing.assert_close(layer.weights(x).repeat_interleave(3, -1), on.double())
    with pytest.raises(InputError, match="over='dims' alone, got dim=12 over units"):
        Experts(12, over="units", net=turned)
    with pytest.raises(InputError, match="a dim that 5 parts of a state divide"):
        Experts(12, n_experts=5, over="dims")
    with pytest.raises(InputError, match="got whole experts"):
        Experts(12).weights(x)


def test_a_confident_router_scales_by_all_parts_over_those_that_are_on():
    """The mean weight of parts that are on is ``n / active``, the scale ``share``."""
    layer = Experts(4, n_experts=5, over="units", k=2, scale="scores", shared=1).double()
    with torch.no_grad():
        layer.line.weight.copy_(30.0 * torch.eye(5, 4).double())
    weight = layer.weights(torch.tensor([1.0, 1.0, 1.0, -1.0]).double())
    assert weight.tolist() == pytest.approx([5 / 3] * 3 + [0.0] * 2)


@pytest.mark.parametrize("over", ["units", "dims"])
@pytest.mark.parametrize("fusion", ["groups", "dense"])
def test_a_fusion_starts_as_the_identity_and_learns(fusion, over):
    given = {"over": over, "k": 1, "scale": "none", "width": 3, "fusion": fusion}
    layer, x = Experts(4, n_experts=4, **given).double(), draw(5, 4)
    nn.init.normal_(layer.experts[0][2].weight, generator=torch.Generator().manual_seed(0))
    plain = Experts(4, n_experts=4, **given | {"fusion": "none"}).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(layer(x), plain(x))
    layer(x).square().sum().backward()
    for p in layer.parameters():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0


def test_a_fusion_of_whole_experts_is_refused():
    with pytest.raises(InputError, match="are of units"):
        Experts(4, fusion="groups")


@pytest.mark.truth("values printed in the handbook, by hand")
def test_confidence():
    layer = WeakAndStrong(4, 3).double()
    logits = torch.tensor([0.7, 0.2, 0.1]).double().log()
    assert float(layer.confidence(logits)) == pytest.approx(0.206667 / 0.666667, abs=1e-5)
    entropy = WeakAndStrong(4, 3, dispersion="entropy")
    assert float(entropy.confidence(logits)) == pytest.approx(0.270153, abs=1e-6)
    assert float(layer.confidence(torch.zeros(3))) == pytest.approx(0.0, abs=1e-12)
    sharper = WeakAndStrong(4, 3, alpha=2.0)
    assert float(sharper.confidence(logits)) == pytest.approx(0.31**2, abs=1e-5)


@pytest.mark.truth("the loss and the choice of the head, row by row")
@pytest.mark.parametrize("through", [False, True])
def test_weak_and_strong(through):
    layer, x = filled(WeakAndStrong(4, 3, threshold=0.4, gate_gradient=through)), draw(30, 4)
    y, loss, weak_alone = torch.arange(30) % 3, 0.0, 0
    for row, label in zip(x, y.tolist(), strict=True):
        weak, strong = layer.weak(row), layer.strong(row)
        c = float((weak.softmax(0) - 1 / 3).square().sum().detach() * 1.5)
        chosen = weak if c > 0.4 else strong
        weak_alone += c > 0.4
        torch.testing.assert_close(layer(row), chosen)
        torch.testing.assert_close(layer.answer(row[None])[0], chosen)
        loss = loss - c * weak.log_softmax(0)[label] - (1 - c) * strong.log_softmax(0)[label]
    assert 0 < weak_alone < 30
    torch.testing.assert_close(layer.loss(x, y), loss / 30)
    loss.backward()
    gradient = layer.weak.weight.grad / 30
    (found,) = torch.autograd.grad(layer.loss(x, y), layer.weak.weight)
    assert torch.allclose(found, gradient) is not through


class _Neighbours(nn.Module):
    """A graph network of one layer: a map of each node's mean over its neighbours."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.head = graph, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.graph / self.graph.sum(1, keepdim=True) @ x)


@pytest.mark.truth("each node asked by hand: its own features, or the mean of its neighbours'")
def test_a_graph_network_as_the_strong_head():
    graph = ((draw(20, 20, seed=3) > 1.0) | torch.eye(20).bool()).double()
    weak = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layer = filled(WeakAndStrong(4, 3, threshold=0.3, weak=weak, strong=_Neighbours(graph)))
    x, head = draw(20, 4), layer.strong.head
    found, asked = layer(x), 0
    for node in range(20):
        own, near = weak(x[node]), x[graph[node] > 0].mean(0)
        c = float((own.softmax(0) - 1 / 3).square().sum().detach() * 1.5)
        asked += c <= 0.3
        torch.testing.assert_close(found[node], own if c > 0.3 else head(near))
    assert 0 < asked < 20
    layer.loss(x, torch.arange(20) % 3).backward()
    assert head.weight.grad is not None


def test_a_balance_over_no_state_is_refused():
    with pytest.raises(InputError, match="expected a real state, got none"):
        Experts(4).balance(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
