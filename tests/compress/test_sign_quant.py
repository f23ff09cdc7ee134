"""Signs with a size: the best size by search, groups, zeros, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.compress import QuantLinear, SignQuant
from sonde.core.errors import InputError


@pytest.mark.truth("the best size of a row, searched")
@pytest.mark.parametrize("group", [None, 4])
def test_the_size_is_the_best_of_all(group):
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(11, 6)).eval()
    net[0].weight.data[2] = 0.0
    new = SignQuant(group=group).plan(net).fold(net)[0]
    assert isinstance(new, QuantLinear)
    w, found = net[0].weight.detach(), new.values()
    sizes = torch.linspace(0, float(w.abs().max()), 20001)
    for i in range(6):
        for start in range(0, 11, group or 11):
            part = w[i, start : start + (group or 11)]
            errors = (sizes[:, None] - part.abs()).square().sum(1)
            best = float(sizes[errors.argmin()])
            got = found[i, start : start + (group or 11)]
            assert got.abs().tolist() == pytest.approx([best] * len(part), rel=2**-7, abs=1e-9)
            assert bool((got * part >= 0).all())
    assert new.codes.shape == (6, 2)


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(InputError, match="group of at least 1, got 0"):
        SignQuant(group=0)
    with pytest.raises(InputError, match="no layer matches 'head'"):
        SignQuant(layers=("head",)).plan(nn.Sequential(nn.Linear(3, 2)))
