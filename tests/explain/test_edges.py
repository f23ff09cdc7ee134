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
    """One layer that writes, and two that read it: the logits are the sum of both ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = linear(torch.randn(3, 3)), linear(torch.randn(3, 3))
        self.left, self.right = linear(torch.randn(2, 3)), linear(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x)
        stream = stream + self.second(stream)
        return self.left(stream) + self.right(stream)


@pytest.mark.truth("the induction circuit, whose weights were written by hand")
@pytest.mark.parametrize("method", [EdgePatching("noise"), EdgeAttribution(ig_steps=3)])
def test_only_the_edges_of_the_circuit_carry_the_answer(method):
    found = method.explain(Induction(), CLEAN, corrupt=CORRUPT, objective=GOAL)
    strong = {e for e, share in zip(found.edges, found.value, strict=True) if abs(share) > 0.1}
    assert strong == CIRCUIT
    assert len(found.edges) > 20


@pytest.mark.truth("closed form: the sum over edges of a linear net is the effect of the whole")
def test_two_ways_add_up_to_the_whole():
    net = TwoWays()
    a, b = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    real = EdgePatching().explain(net, a, corrupt=b, objective=Objective(target=1))
    fast = EdgeAttribution(ig_steps=1).explain(net, a, corrupt=b, objective=Objective(target=1))
    torch.testing.assert_close(real.effects, fast.effects)
    into = [i for i, (_, v) in enumerate(real.edges) if v in ("left:in", "right:in")]
    torch.testing.assert_close(real.effects[:, into].sum(1), real.source - real.base)
    one = real.edges.index(("first:out", "left:in"))
    moved = (net.first(a) - net.first(b)) @ net.left.weight[1]
    torch.testing.assert_close(real.effects[:, one], moved.detach())


def test_a_stream_with_norms_on_it_is_refused():
    ids = torch.tensor([[1, 5, 6, 7]])
    with pytest.raises(StateError, match="a norm stands on the stream, or the runs are the same"):
        EdgePatching().explain(Induction(), CLEAN, corrupt=CLEAN, objective=GOAL)
    with pytest.raises(InputError, match="one length"):
        EdgePatching().explain(Induction(), CLEAN, corrupt=CORRUPT[:, :4], objective=GOAL)
    assert residual_readers(mlp(), torch.zeros(1, 8)) == {"1": ("0",), "3": ("2",)}
    assert not any(
        "encoder.layer.1" in name for name in residual_readers(bert(), {"input_ids": ids})
    )
