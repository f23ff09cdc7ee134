"""Tensors of any module held as codes: values, ties, copies, pickles, the way back."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sonde.compress import RTN
from sonde.core.errors import StoreError
from sonde.core.repacking import count_weights
from sonde.run.compressing.document import held_bytes
from sonde.weights import unpacked
from sonde.weights.forms import put_form
from sonde.weights.quant_tensor import QuantTensor


class Reader(nn.Module):
    """Reads tokens, picks one of three experts for each, and scores tokens by the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 20, padding_idx=0)
        self.experts = Experts()
        self.head = nn.Linear(20, 50)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.experts(self.embed(ids), ids % 3))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.up = nn.Parameter(torch.randn(3, 20, 20))
        self.other = nn.Parameter(torch.randn(4, 20, 20))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x)
        for i in chosen.unique():
            made[chosen == i] = nn.functional.linear(x[chosen == i], self.up[i])
        return made


IDS = torch.tensor([[3, 41, 7, 0], [12, 12, 49, 5]])


def small() -> tuple[Any, Any, Any]:
    net = Reader().eval()
    plan = RTN(bits=3, group=8, layers=("*",)).plan(net)
    assert set(plan.changes) == {"embed.weight", "experts.up"}
    twin = copy.deepcopy(net)
    for name, change in plan.changes.items():
        twin.get_parameter(name).data = change.of(twin.get_parameter(name))
    return net, plan.fold(net), twin


@pytest.mark.truth("each entry by the formula, in Python floats")
def test_each_entry_is_what_the_formula_says():
    _, new, _ = small()
    held = new.experts.packed_up
    scale, offset = (x.view(torch.bfloat16).float() for x in (held.scale, held.offset))
    codes = [[[0] * 20 for _ in range(2)] for _ in range(3)]
    for e in range(3):
        for i in range(2):
            planes = held.codes[e, i].chunk(3)
            for j in range(20):
                codes[e][i][j] = sum(
                    (int(p[j // 8]) >> j % 8 & 1) << k for k, p in enumerate(planes)
                )
    wanted = torch.tensor(
        [[[(codes[e][i][j] - 4) * float(scale[e, i, j // 8]) + float(offset[e, i, j // 8])
           for j in range(20)] for i in range(2)] for e in range(3)]
    )  # fmt: skip
    torch.testing.assert_close(new.experts.up[:][:, :2], wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(new.experts.up[2][:2], wanted[2], rtol=0, atol=1e-6)


@pytest.mark.truth("a plain torch copy with the unpacked weights")
def test_a_packed_model_answers_alike_copied_pickled_unpacked_and_in_half():
    net, new, twin = small()
    wanted = twin(IDS)
    for one in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new)), unpacked(new)):
        torch.testing.assert_close(one(IDS), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - net(IDS)).abs().max() > 0.1
    assert isinstance(new.embed, nn.Embedding)
    assert isinstance(new.experts, Experts)
    assert type(net.experts) is Experts, "the old model changed"
    assert count_weights(new) == count_weights(net)
    assert held_bytes(new) < held_bytes(net) - 2000 * 4 * 0.7  # 3 bits, a scale and an offset for 8
    half = copy.deepcopy(new).to(torch.bfloat16)
    assert half(IDS).dtype == torch.bfloat16
    torch.testing.assert_close(half(IDS).float(), wanted, rtol=0.1, atol=0.3)
    apart = copy.deepcopy(new)
    apart.embed.packed_weight.scale.zero_()
    apart.embed.packed_weight.offset.zero_()
    assert torch.equal(apart(IDS), apart.head.bias.expand(2, 4, -1)), "the copy read the original"


def test_the_way_back_keeps_ties_and_classes():
    _, new, twin = small()
    plain = unpacked(new)
    assert plain.head.weight is plain.embed.weight
    assert type(plain.experts) is Experts
    assert not any(isinstance(part, QuantTensor) for part in plain.modules())
    torch.testing.assert_close(plain.embed.weight, twin.embed.weight, rtol=0, atol=1e-6)
    plain(IDS).sum().backward()
    assert plain.experts.up.grad is not None


def test_forms_of_another_model_are_refused():
    net = Reader()
    with pytest.raises(StoreError, match=r"expected a part with up of the shape \[3, 20, 21\]"):
        put_form(net, "experts", {"tensors": {"up": {"bits": 4, "group": 8, "shape": [3, 20, 21]}}})
    with pytest.raises(StoreError, match="expected a part whose weight is that of gone"):
        put_form(net, "head", {"tied": {"weight": "gone"}})
