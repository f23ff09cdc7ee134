"""Dense weights of packed layers: values, names, and that no code or scale counts as a weight."""

import pytest
import torch
from torch import nn

from sonde.compress import RTN, BitStack, LowRankWeights, WeightCodebook
from sonde.weights import dense_weights
from sonde.weights.dense import own_weights
from weights.test_converted_weights import net as converted
from weights.test_quant_tensor import small as packed_reader
from weights.test_unpacking import ROWS, net

RULES = [
    RTN(bits=4),
    RTN(bits=8, group=0),
    WeightCodebook(bits=4),
    BitStack(bits=5),
    LowRankWeights(0.5),
]


@pytest.mark.truth("what the packed layer answers to unit vectors")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_dense_weight_is_what_a_packed_layer_multiplies_by(rule) -> None:
    plain = net()
    small = rule.plan(plain, dict.fromkeys(rule.reads(), ROWS)).fold(plain)
    weights = dense_weights(small)
    assert list(weights) == list(dense_weights(plain)) == list(dict(plain.named_parameters()))
    assert [weights[n].shape for n in weights] == [tuple(p.shape) for p in plain.parameters()]
    for path in ("body", "fc"):
        layer = small.get_submodule(path)
        expected = (layer(torch.eye(layer.in_features)) - layer.bias).T
        assert weights[f"{path}.weight"].is_packed
        torch.testing.assert_close(
            weights[f"{path}.weight"].read(), expected.detach(), atol=0.02, rtol=0.02
        )


@pytest.mark.truth("the plan's own rounding of each tensor")
def test_packed_embeddings_and_stacks_have_one_weight_and_ties_have_one_name() -> None:
    plain, small, rounded = packed_reader()
    weights = dense_weights(small)
    assert set(weights) == {n for n, _ in plain.named_parameters()}
    for name in ("embed.weight", "experts.up"):
        assert torch.equal(weights[name].read(), rounded.get_parameter(name).detach())
    assert own_weights(small.head)["weight"].source is weights["embed.weight"].source


@pytest.mark.truth("the weights before they were converted")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["sparse_csr", "sparse_coo", "Halved", "dynamic"])
def test_converted_weights_are_read_as_plain_tensors(kind) -> None:
    weights = dense_weights(converted(kind))
    torch.manual_seed(0)
    first = nn.Linear(8, 6, bias=False).weight.detach()
    wanted = first if kind == "dynamic" else first * (first.abs() > 0.1)
    if kind == "Halved":
        wanted = torch.cat([wanted[:3], -wanted[:3]])
    assert list(weights) == ["0.weight", "2.weight", "2.bias"]
    torch.testing.assert_close(weights["0.weight"].read(), wanted, atol=0.01, rtol=0.01)
    assert weights["0.weight"].is_packed
    assert type(weights["0.weight"].read()) is torch.Tensor
