"""Graphs as inputs: a row and a column for each node, beside a mask of padded nodes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sonde
from sonde.data import open_inputs
from sonde.tap.rows.padding import left_padded, right_padded
from sonde.tap.streams.small_batches import single, small_batches

WIDE, KINDS = 9, 5


class Graph(nn.Module):
    """Sums over neighbours, twice, and a mean over the real nodes."""

    def __init__(self, n_features: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(n_features, 8) if n_features else nn.Embedding(KINDS, 8)
        self.layers = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, nodes: Tensor, bonds: Tensor, mask: Tensor) -> Tensor:
        real = mask[..., None].float()
        x = self.embed(nodes) * real
        for layer in self.layers:
            x = x + functional.relu(layer(torch.cat([x, bonds.float() @ x], -1))) * real
        return self.head(x.sum(1) / real.sum(1))


def graphs(n: int, n_features: int = 0, whole: bool = False, left: bool = False):
    torch.manual_seed(1)
    found = []
    for i in range(n):
        k = WIDE if whole else 3 + i % (WIDE - 3)
        at = slice(WIDE - k, None) if left else slice(0, k)
        mask, bonds = torch.zeros(WIDE, dtype=torch.bool), torch.zeros(WIDE, WIDE)
        mask[at] = True
        bonds[at, at] = (torch.rand(k, k) < 0.4).float()
        nodes = torch.zeros(WIDE, n_features) if n_features else torch.zeros(WIDE, dtype=torch.long)
        nodes[at] = torch.randn(k, n_features) if n_features else torch.randint(1, KINDS, (k,))
        found.append({"nodes": nodes, "bonds": bonds, "mask": mask})
    return found


@pytest.mark.truth("the forward pass of the padded graphs")
@pytest.mark.parametrize("n_features", [0, 4, WIDE])
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_cut_and_moved_on_both_axes(n_features, left):
    net, items = Graph(n_features).eval(), graphs(12, n_features, left=left)
    inputs = open_inputs(sonde.load(net), items)
    batch = next(inputs.batches(0, 12))
    with torch.no_grad():
        expected = net(**batch.kwargs)
        for moved in (right_padded(batch), left_padded(batch)):
            torch.testing.assert_close(net(**moved.kwargs), expected)
        for i, order in enumerate(batch.order.tolist()):
            alone = single(inputs, order)
            assert alone is not None
            n = int(alone.mask.sum())
            assert alone.kwargs["bonds"].shape == (1, n, n)
            assert alone.kwargs["nodes"].shape[2:] == ((n_features,) if n_features else ())
            torch.testing.assert_close(net(**alone.kwargs)[0], expected[i])
    evened = small_batches(sonde.load(net), inputs, range(12))
    assert len({tuple(s.kwargs["bonds"].shape) for s in evened.singles}) == 1
    assert len(net(**evened.together(range(len(evened))).kwargs)) == len(evened) > 2


def test_the_nodes_of_whole_graphs_are_positions():
    net = Graph().eval()
    (batch,) = sonde.read(net, graphs(6, whole=True), sites="layers.0", reducer="tokens")
    assert batch.rows["layers.0:out"].shape == (6 * WIDE, 8)
    assert batch.position["layers.0:out"].max() == WIDE - 1


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "whole"), [(0, False), (0, True), (WIDE, False)])
def test_a_graph_net_is_scanned(n_features, whole):
    items = [{**row, "label": i % 3} for i, row in enumerate(graphs(40, n_features, whole))]
    report = sonde.scan(Graph(n_features).eval(), items)
    assert not [c for c in report.json()["checks"] if c["state"] == "failed"]


class Two(nn.Module):
    """Two texts of different lengths, each with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, ask: Tensor, mask: Tensor, told: Tensor, told_mask: Tensor) -> Tensor:
        a = torch.tanh(self.first(self.embed(ask))) * mask[..., None]
        b = torch.tanh(self.second(self.embed(told))) * told_mask[..., None]
        return self.head(torch.cat([a.sum(1) / mask.sum(1)[:, None],
                                    b.sum(1) / told_mask.sum(1)[:, None]], 1))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 8])
def test_two_texts_of_different_lengths_are_scanned(size):
    torch.manual_seed(0)
    items = []
    for i in range(40):
        n, m = 2 + i % 4, 3 + i % (size - 2)
        a, b = torch.zeros(5, dtype=torch.long), torch.zeros(size, dtype=torch.long)
        a[:n], b[:m] = torch.randint(1, 20, (n,)), torch.randint(1, 20, (m,))
        items.append({"ask": a, "mask": (a > 0).float(), "told": b, "told_mask": (b > 0).float(),
                      "label": i % 2})  # fmt: skip
    net = Two().eval()
    report = sonde.scan(net, items)
    assert not [c for c in report.json()["checks"] if c["state"] == "failed"]
    inputs = open_inputs(sonde.load(net), items)
    for i in (0, 5, 7):
        alone = single(inputs, i)
        assert alone is not None
        assert alone.kwargs["ask"].shape == (1, 2 + i % 4)
        whole = {name: x[None] for name, x in items[i].items() if name != "label"}
        torch.testing.assert_close(net(**alone.kwargs), net(**whole))


@pytest.mark.slow
def test_a_set_with_a_mask_is_scanned():
    class Set(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, points: Tensor, mask: Tensor) -> Tensor:
            x = functional.relu(self.each(points)) + ~mask[..., None] * -1e4
            return self.head(x.amax(1))

    torch.manual_seed(0)
    items = [
        {"points": torch.randn(6, 3), "mask": torch.arange(6) < 2 + i % 5, "label": i % 2}
        for i in range(40)
    ]
    report = sonde.scan(Set().eval(), items)
    assert not [c for c in report.json()["checks"] if c["state"] == "failed"]
