"""Frozen parameters stay bit for bit, and all flags and modes come back."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.train import Scope


def net():
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(*blocks), nn.Linear(4, 2))


def trained(module, moving, optimiser, n=10):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for step in range(n):
        moving.turn(step // 5)
        optimiser.zero_grad()
        module(x).square().sum().backward()
        optimiser.step()


@pytest.mark.truth("bits of the state before and after training")
@pytest.mark.parametrize(
    ("scope", "moves"),
    [
        (Scope("norms"), ["1.0.1", "1.1.1", "1.2.1"]),
        (Scope("top", k=2), ["1.1", "1.2", "2"]),
        (Scope("top", k=3), ["1", "2"]),
        (Scope("pattern", patterns=("0.*",)), ["0"]),
        (Scope("alternate", patterns=("0.*", "2.*")), ["0", "2"]),
    ],
)
def test_only_what_is_in_scope_moves(scope, moves):
    module = net().train()
    made = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    module(torch.ones(2, 3)).sum().backward()  # gradients and momentum of before
    made.step()
    module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    with scope.on(module, made) as moving:
        trained(module, moving, made)
    for name, value in module.state_dict().items():
        inside = any(name.startswith(f"{m}.") for m in moves)
        assert torch.equal(value, before[name]) != inside, name
    assert flags == [p.requires_grad for p in module.parameters()]
    assert all(m.training for m in module.modules())


def test_shares_and_a_scope_without_parameters():
    module = net()
    with Scope("bias").on(module) as moving:
        assert moving.n_parameters == sum(
            p.numel() for n, p in module.named_parameters() if n.endswith("bias")
        )
        assert moving.share == moving.n_parameters / sum(p.numel() for p in module.parameters())
    with pytest.raises(InputError, match=r"expected parameters for rule 'pattern' \('9.\*',\)"):
        Scope("pattern", patterns=("9.*",)).on(module).__enter__()
    with pytest.raises(InputError, match="expected 4 blocks or more, got 3"):
        Scope("top", k=4).on(module).__enter__()
    with pytest.raises(InputError, match="an optimiser with the parameters"):
        Scope("norms").on(module, torch.optim.SGD(module[0].parameters(), 0.1)).__enter__()
