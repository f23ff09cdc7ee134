"""Packed layers: counted, found as heads, and exchanged for plain ones."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde.compress import RTN, BitStack, WeightCodebook
from sonde.core.repacking import count_weights, packed_weights
from sonde.explain.sanity import given_back
from sonde.tap import find_head
from sonde.weights import unpacked

ROWS = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = {"body": nn.Linear(16, 32), "act": nn.GELU(), "fc": nn.Linear(32, 12)}
    return nn.Sequential(OrderedDict(layers)).eval()


@pytest.fixture(
    params=[RTN(bits=4), RTN(bits=8, group=0), WeightCodebook(bits=4), BitStack(bits=5)]
)
def small(request):
    plain = net()
    rule = request.param
    return rule.plan(plain, dict.fromkeys(rule.reads(), ROWS)).fold(plain)


def test_plain_layers_of_the_same_weights_give_the_same_answers_and_a_gradient(small):
    weights = [part.values() for part in packed_weights(small)]
    new = unpacked(small)
    x = ROWS.clone().requires_grad_()
    assert [type(part) for part in new] == [nn.Linear, nn.GELU, nn.Linear]
    assert len(packed_weights(small)) == 2
    assert torch.equal(new.body.weight, weights[0])
    torch.testing.assert_close(new(ROWS), small(ROWS), rtol=0.02, atol=0.02)  # bfloat16 kernels
    h = x @ weights[0].T + small.body.bias
    (slope,) = torch.autograd.grad(new(x).sum(), x)
    (expected,) = torch.autograd.grad((nn.functional.gelu(h) @ weights[1].T).sum(), x)
    torch.testing.assert_close(slope, expected)
    assert all(p.requires_grad for p in new.parameters())


def test_types_and_models_are_kept_and_a_plain_model_is_returned_itself(small):
    half = unpacked(small.bfloat16())
    assert half(ROWS.bfloat16()).dtype == half.body.weight.dtype == torch.bfloat16
    model = Model(small, name="small", task="classifier")
    new = unpacked(model)
    assert (new.name, new.task) == ("small", "classifier")
    assert not packed_weights(new.module)
    assert unpacked(new) is new
    plain = net()
    assert unpacked(plain) is plain


def test_packed_weights_are_counted_and_a_packed_head_is_found(small):
    plain = net()
    assert count_weights(small) == count_weights(plain) == 16 * 32 + 32 + 32 * 12 + 12
    assert f"{count_weights(plain):,} parameters" in repr(Model(small))
    head = find_head(small)
    assert head is not None
    found, bias = head
    assert torch.equal(found, small.fc.values())
    assert torch.equal(bias, plain.fc.bias)


def test_weights_that_cannot_be_redrawn_are_refused(small):
    with (
        pytest.raises(InputError, match=r"packed weights. Use sonde.weights.unpacked"),
        given_back(small),
    ):
        raise AssertionError("packed weights were taken for redrawn")
    with given_back(unpacked(small)):
        pass
