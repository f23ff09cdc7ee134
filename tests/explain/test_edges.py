"""Effects of edges, against a circuit written by hand and a net of two ways."""

import pytest
import torch
from torch import Tensor, nn

from circuits import ANSWER, CIRCUIT, CLEAN, CORRUPT, INSTEAD, Induction, linear
from models import bert, mlp
from sonde.core import InputError, StateError
from sonde.explain import EdgeAttribution, EdgePatching, Objective
from sonde.weights import residual_readers

GOAL = Objective("margin", target=ANSWER, other=INSTEAD)


class TwoWays(nn.Module):
    """One layer that writes, and two that read it: the logits are the sum of both ways.

    Tokens (row, token, dim) become rows of one matrix, as some models have them.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = linear(torch.randn(3, 3)), linear(torch.randn(3, 3))
        self.left, self.right = linear(torch.randn(2, 3)), linear(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x.flatten(0, -2))
        stream = stream + self.second(stream)
        return (self.left(stream) + self.right(stream)).view(len(x), -1, 2).sum(1)


@pytest.mark.truth("the induction circuit, whose weights were written by hand")
@pytest.mark.parametrize("method", [EdgePatching("noise"), EdgeAttribution(ig_steps=3)])
def test_only_the_edges_of_the_circuit_carry_the_answer(method):
    found = method.explain(Induction(), CLEAN, corrupt=CORRUPT, objective=GOAL)
    strong = {e for e, share in zip(found.edges, found.value, strict=True) if abs(share) > 0.1}
    assert strong == CIRCUIT
    assert len(found.edges) > 20


@pytest.mark.truth("closed form: the sum over edges of a linear net is the effect of the whole")
@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3)], ids=["rows", "tokens in one matrix"])
def test_two_ways_add_up_to_the_whole(shape):
    net = TwoWays()
    a, b = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    real = EdgePatching().explain(net, a, corrupt=b, objective=Objective(target=1))
    fast = EdgeAttribution(ig_steps=1).explain(net, a, corrupt=b, objective=Objective(target=1))
    torch.testing.assert_close(real.effects, fast.effects)
    into = [i for i, (_, v) in enumerate(real.edges) if v in ("left:in", "right:in")]
    torch.testing.assert_close(real.effects[:, into].sum(1), real.source - real.base)
    one = real.edges.index(("first:out", "left:in"))
    moved = ((net.first(a) - net.first(b)) @ net.left.weight[1]).reshape(4, -1).sum(1)
    torch.testing.assert_close(real.effects[:, one], moved.detach())


class Placed(nn.Module):
    """Tokens at places that are added as a parameter, a buffer, or a wave of the forward's own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.embed = kind, nn.Embedding(7, 4)
        self.up, self.down, self.unembed = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        places = torch.outer(torch.arange(5) + 1.0, torch.tensor([0.3, 0.7, 1.1, 1.9])).sin()
        if kind == "parameter":
            self.places = nn.Parameter(places)
        elif kind != "wave":
            self.register_buffer("places", places, persistent=kind == "buffer")

    def forward(self, input_ids: Tensor) -> Tensor:
        at = torch.arange(input_ids.shape[1])
        if self.kind == "wave":
            places = torch.outer(at + 1.0, torch.tensor([0.3, 0.7, 1.1, 1.9])).sin()
        else:
            places = self.places[at] if self.kind == "unsaved" else self.places[: len(at)]
        x = self.embed(input_ids) + places
        x = x + self.down(torch.tanh(self.up(x)))
        return self.unembed(x)[:, -1]


@pytest.mark.truth("the same net with its positions as a parameter")
@pytest.mark.parametrize("kind", ["buffer", "unsaved", "wave"])
def test_positions_that_no_input_changes_keep_the_stream(kind):
    clean, corrupt = torch.tensor([[1, 5, 6, 2]]), torch.tensor([[1, 3, 6, 4]])
    real, found = (
        EdgePatching().explain(Placed(k), clean, corrupt=corrupt, objective=Objective(target=1))
        for k in ("parameter", kind)
    )
    assert found.edges == real.edges
    assert {u for u, _ in found.edges} == {"embed:out", "down:out"}
    torch.testing.assert_close(found.effects, real.effects)
    assert residual_readers(Placed(kind), clean) == {"up": ("embed",), "unembed": ("embed", "down")}


def test_a_stream_with_norms_on_it_is_refused():
    ids = torch.tensor([[1, 5, 6, 7]])
    with pytest.raises(
        StateError,
        match="a norm is applied to the residual stream itself, or the two runs are identical",
    ):
        EdgePatching().explain(Induction(), CLEAN, corrupt=CLEAN, objective=GOAL)
    with pytest.raises(InputError, match="one length"):
        EdgePatching().explain(Induction(), CLEAN, corrupt=CORRUPT[:, :4], objective=GOAL)
    assert residual_readers(mlp(), torch.zeros(1, 8)) == {"1": ("0",), "3": ("2",)}
    assert not any(
        "encoder.layer.1" in name for name in residual_readers(bert(), {"input_ids": ids})
    )
