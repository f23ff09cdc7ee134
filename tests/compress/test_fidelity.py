"""How far two models' answers are apart."""

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import fidelity
from sonde.core.errors import InputError
from sonde.data import open_inputs


@pytest.mark.truth("torch.distributions, row by row")
def test_divergence_quantile_and_flips():
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.Linear(5, 3)).eval() for _ in range(2))
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    label = torch.arange(200) % 3
    found = fidelity(one, two, open_inputs(Model(one), (x, label)))
    with torch.no_grad():
        p, q = (torch.distributions.Categorical(logits=net(x).double()) for net in (one, two))
        kl = torch.distributions.kl_divergence(p, q)
        tops = [d.probs.argmax(1) for d in (p, q)]
    right = [top == label for top in tops]
    assert found.n == 200
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-5)
    se = float(kl.std(correction=0)) / 200**0.5
    assert found.kl_high - found.kl_low == pytest.approx(2 * 1.96 * se, rel=0.15)
    assert found.kl_low < found.kl < found.kl_high
    assert found.kl_99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-5)
    assert found.changed == pytest.approx(float((tops[0] != tops[1]).double().mean()))
    assert found.right_to_wrong == pytest.approx(float((right[0] & ~right[1]).double().mean()))
    assert found.wrong_to_right == pytest.approx(float((right[1] & ~right[0]).double().mean()))
    same = fidelity(one, one, open_inputs(Model(one), (x, label)))
    assert (same.kl, same.changed, same.kl_99) == (0.0, 0.0, 0.0)


def test_no_examples_are_refused():
    net = nn.Sequential(nn.Linear(5, 3)).eval()
    data = open_inputs(Model(net), (torch.randn(4, 5), torch.arange(4) % 3))
    with pytest.raises(InputError, match="expected examples with answers, got none"):
        fidelity(net, net, data, start=4)


class MaskedLogits(nn.Linear):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.arange(5) == 3, -torch.inf)


def test_a_class_that_both_models_rule_out_counts_nothing():
    torch.manual_seed(0)
    one, other, x = MaskedLogits(3, 5), MaskedLogits(3, 5), torch.randn(20, 3)
    inputs = open_inputs(Model(one), x)
    assert fidelity(one, one, inputs).kl == 0.0
    some = [0, 1, 2, 4]
    p, q = (net(x)[:, some].double().log_softmax(1) for net in (one, other))
    wanted = float((p.exp() * (p - q)).sum(1).mean().detach())
    assert fidelity(one, other, inputs).kl == pytest.approx(wanted, rel=1e-6)
