"""Graphs over nodes: propagation in closed form, neighbours by hand, learned edges, influence."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import kneighbors_graph

from sonde.core import InputError
from sonde.layers import StateGraph, propagate
from sonde.layers.state_graph import normalised


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("(1 - alpha) (I - alpha S)^-1 in numpy; 60 rounds come to the same")
def test_labels_spread_over_a_weighted_graph_with_an_isolated_node():
    a = drawn(7, 7).abs() * (drawn(7, 7, seed=1) > 0.2)
    a = a + a.T
    a[3] = a[:, 3] = 0
    y, n = drawn(7, 2, seed=2), a.numpy()
    degree = n.sum(1)
    root = np.divide(1, np.sqrt(degree), out=np.zeros(7), where=degree > 0)
    whole = np.linalg.inv(np.eye(7) - 0.7 * root[:, None] * n * root)
    found = propagate(y, a, 0.7)
    np.testing.assert_allclose(found, 0.3 * whole @ y.numpy(), atol=1e-12)
    torch.testing.assert_close(propagate(y, a, 0.7, steps=100), found)
    torch.testing.assert_close(found[3], 0.3 * y[3])
    assert torch.equal(propagate(y, a, 0.0), y)


@pytest.mark.truth("scikit-learn's kneighbors_graph, and the rounds written out")
@torch.no_grad()
def test_neighbours_are_the_nearest_in_both_directions():
    layer, x = StateGraph(3, k=2, steps=2).double(), drawn(2, 8, 3)
    layer.strength.fill_(0.9)
    for one, found in zip(x, layer(x), strict=True):
        graph = kneighbors_graph(one.numpy(), 2).toarray()
        smooth = normalised(torch.from_numpy(np.maximum(graph, graph.T)))
        alpha, y = float(np.tanh(0.9)), one
        for _ in range(2):
            y = alpha * smooth @ y + (1 - alpha) * one
        torch.testing.assert_close(found, y)


@pytest.mark.truth("numpy's corrcoef")
@torch.no_grad()
def test_correlated_nodes_are_joined():
    x = drawn(1, 6, 5)
    found = StateGraph(5, "correlation", threshold=0.4).edges(x)[0]
    wanted = (np.abs(np.corrcoef(x[0].numpy())) >= 0.4) & ~np.eye(6, dtype=bool)
    assert np.array_equal(found.numpy() > 0, wanted)
    assert 0 < wanted.sum() < 30


@pytest.mark.truth("torch's scaled_dot_product_attention, and a graph convolution in numpy")
@torch.no_grad()
def test_attention_and_a_map_of_what_is_sent():
    layer, x = StateGraph(3, "attention", steps=2, mapped=True).double(), drawn(2, 5, 3)
    layer.strength.fill_(0.7)
    layer.map.weight.copy_(drawn(3, 3, seed=4))
    query, key = (layer.asks[name](x) for name in ("query", "key"))
    same = torch.eye(5, dtype=x.dtype).expand(2, 5, 5)
    a = torch.nn.functional.scaled_dot_product_attention(query, key, same).numpy()
    s = a / np.sqrt(a.sum(2))[:, :, None] / np.sqrt(a.sum(1))[:, None]
    alpha, y, start = np.tanh(0.7), x.numpy(), x.numpy()
    for _ in range(2):
        y = alpha * s @ y @ layer.map.weight.numpy().T + (1 - alpha) * start
    np.testing.assert_allclose(layer(x), y, atol=1e-12)
    real = torch.tensor([[True] * 5, [True, True, False, True, False]])
    cut = layer(x, real)[1, [0, 1, 3]]
    torch.testing.assert_close(cut, layer(x[1:, [0, 1, 3]])[0])


@pytest.mark.essential
@pytest.mark.truth("planted: two senders carry what three nodes need")
def test_learned_edges_come_from_the_nodes_that_know():
    torch.manual_seed(0)
    layer = StateGraph(4, "learned", n=5, budget=3)
    head = torch.nn.Linear(4, 4)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], 0.05)
    for _ in range(200):
        x = torch.randn(64, 5, 4)
        wanted = x[:, [0, 0, 0]]
        optimiser.zero_grad()
        (head(layer(x)[:, 2:]) - wanted).square().mean().backward()
        optimiser.step()
    edges = layer.eval().edges(torch.randn(1, 5, 4))
    assert edges.unique().tolist() == [0.0, 1.0]
    assert int(edges.sum()) == 3 + 5
    assert edges[2:, 0].tolist() == [1.0, 1.0, 1.0]


@torch.no_grad()
def test_influence_is_that_of_the_edges():
    layer, x = StateGraph(3, k=1), drawn(4, 5, 3).float()
    layer.strength.fill_(0.5)
    found, edges = layer.influence(x), layer.edges(x).sum(0)
    assert bool(((found > 0) == (edges > 0)).all())


def test_padded_nodes_send_nothing():
    layer, x = StateGraph(3, k=2).double(), drawn(1, 6, 3)
    layer.strength.data.fill_(0.7)
    real = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(layer(x, mask=real)[:, :4], layer(x[:, :4]))
    assert bool(layer(x, mask=real).isfinite().all())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StateGraph(3, k=0), "k of at least 1, got 0"),
        (lambda: StateGraph(3, "learned", n=3, budget=6), "a budget of 1 to 5"),
        (
            lambda: StateGraph(3, "given")(drawn(1, 2, 3).float()),
            "an adjacency with kind='given'",
        ),
        (lambda: propagate(drawn(2, 2), drawn(2, 2), 1.0), r"alpha in \[0, 1\)"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
