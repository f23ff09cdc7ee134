"""Probes after an erasure: blind where it is linear, not where it is not, and again later."""

import pytest
import torch
from torch import nn

import sonde
from edit.test_null_space import normal
from sonde.core import InputError
from sonde.edit import Leace
from sonde.edit.probes import probe_accuracy, probes_along


def planted(n=1500):
    """Rows whose first unit tells the class, and whose square of the second unit does too."""
    label = torch.arange(n) % 2
    x = normal(n, 4).float()
    x[:, 0] += 3 * (2 * label - 1)
    x[:, 1] = (x[:, 1].abs() + 0.5) * torch.where(label == 1, 1.0, 0.2) * x[:, 1].sign()
    return x, label


class Squares(nn.Module):
    """The first layer hands rows on; the second appends their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.second.forward = lambda input: torch.cat([input, input.square()], 1)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.essential
@pytest.mark.truth("a planted class: linear in one unit, quadratic in another")
def test_a_later_site_repairs_what_was_erased():
    x, label = planted()
    net = Squares()
    data = [{"x": row, "label": int(k)} for row, k in zip(x, label, strict=True)]
    stream = sonde.read(net, data, sites=["first", "second"])
    plain = probes_along(stream)
    edit = Leace().fit(x, label).edit()
    with sonde.editing(net, edit, "first"):
        after = probes_along(sonde.read(net, data, sites=["first", "second"]))
    first, second = "first:out", "second:out"
    assert plain[first].linear > 0.97
    assert after[first].linear < after[first].majority + 0.1  # four standard errors
    assert after[first].two_layer > after[first].majority + 0.2
    assert after[second].linear > after[first].linear + 0.1
    assert after[first].n == 450
    assert probes_along(stream) == plain


def test_the_global_random_state_is_left_alone_and_bad_input_is_refused():
    x, label = planted(60)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    probe_accuracy(x, label, torch.arange(60) < 20)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError, match="60 and 0"):
        probe_accuracy(x, label, torch.zeros(60).bool())
    with pytest.raises(InputError, match="rows with labels, got none"):
        probes_along(sonde.Stream.of(x))
