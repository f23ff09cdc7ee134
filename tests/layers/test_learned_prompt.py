"""Learned prompts: where the vectors stand, what learns, and what stays frozen."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.layers import LearnedPrompt, TargetHead


@pytest.mark.truth("a concatenation by hand, row by row")
def test_each_kind_has_its_own_vectors_in_front():
    layer = LearnedPrompt(3, n=2, kinds=2, scale=1.0)
    x, kind = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1)), [1, 0, 1]
    found = layer(x, torch.tensor(kind))
    for row, k in enumerate(kind):
        assert torch.equal(found[row, :2], layer.vectors[k])
        assert torch.equal(found[row, 2:], x[row])
    assert torch.equal(layer(x)[:, :2], layer.vectors[[0, 0, 0]])
    assert not torch.equal(layer.vectors[0], layer.vectors[1])


@pytest.mark.truth("finite differences through a frozen encoder and a head")
def test_the_task_reaches_the_vectors_of_its_kind_through_a_frozen_encoder():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double().requires_grad_(False)
    layer = LearnedPrompt(3, n=2, kinds=2, scale=1.0).double()
    head = TargetHead(5, 2, project=False, temperature=0.5).double()
    words, states = torch.randn(2, 4, 3).double(), torch.randn(6, 5).double()

    def loss():
        targets = encoder(layer(words, torch.tensor([1, 1]))).mean(1)
        return head(states, targets).log_softmax(1)[:, 0].mean()

    (slope,) = torch.autograd.grad(loss(), layer.vectors)
    assert float(slope[0].abs().max()) == 0.0
    with torch.no_grad():
        before = float(loss())
        layer.vectors[1, 1, 2] += 1e-6
        assert (float(loss()) - before) / 1e-6 == pytest.approx(float(slope[1, 1, 2]), rel=1e-3)
    with pytest.raises(InputError, match="kinds from 0 to 1, got 0 to 2"):
        layer(words, torch.tensor([0, 2]))
    with pytest.raises(InputError, match="at least one vector"):
        LearnedPrompt(3, n=0)


@pytest.mark.truth("two products and a GELU by hand")
def test_states_of_another_encoder_are_projected_and_come_first():
    torch.manual_seed(1)
    layer = LearnedPrompt(3, n=1, source=5).double()
    x, states = torch.randn(2, 4, 3).double(), torch.randn(2, 6, 5).double()
    first, _, last = layer.project
    z = states @ first.weight.T + first.bias
    z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    wanted = z @ last.weight.T + last.bias
    found = layer(x, states=states)
    torch.testing.assert_close(found[:, :6], wanted)
    assert torch.equal(found[:, 6:], layer(x))
    with pytest.raises(InputError, match="width source=5, got width 4"):
        layer(x, states=states[..., :4])
    with pytest.raises(InputError, match="source=0, got width 5"):
        LearnedPrompt(3)(x.float(), states=states.float())
