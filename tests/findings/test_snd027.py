import pytest
import torch
from torch import nn

from findings._nets import assert_clear, assert_raised, checked, noise, tensors
from narrow import expect
from sonde.findings.codes.snd027 import SND027


def net(rank: int | None, widths: tuple[int, int, int] = (24, 40, 40)) -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = widths
    module = nn.Sequential(nn.Linear(8, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(),
                           nn.Linear(second, third)).eval()  # fmt: skip
    if rank is not None:
        with torch.no_grad():
            weight = expect(nn.Linear, module[4]).weight
            u, s, v = torch.linalg.svd(weight)
            s[rank:] = 0
            weight.copy_(u @ torch.diag(s) @ v)
    return module


@pytest.mark.truth("number of singular values that were kept")
def test_a_weight_cut_to_twelve_dimensions() -> None:
    check = checked(SND027(), tensors(net(12), 2 * noise(300, 8)))
    finding = assert_raised(check, "note")
    assert check.tables["ranks"]["4"][0] == 12
    assert finding.sites == ("4",)


def test_a_wider_layer_has_the_rank_of_its_input() -> None:
    check = checked(SND027(), tensors(net(None, (24, 40, 64)), 2 * noise(300, 8)))
    assert_clear(check)
    assert check.tables["ranks"]["4"] == (40, 40)
    assert check.tables["ranks"]["2"] == (24, 24)


def test_withheld_below_twice_the_width() -> None:
    check = checked(SND027(), tensors(net(12), noise(50, 8)))
    assert check.state == "withheld"
    assert check.tables["needed"] == 80


@pytest.mark.slow
@pytest.mark.truth("number of singular values that were kept")
@pytest.mark.parametrize("bias", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_mean_hides_neither_a_whole_layer_nor_a_cut_one(dtype: torch.dtype, bias: float) -> None:
    for kept in (64, 12):
        module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for layer in (expect(nn.Linear, child) for child in module):
                nn.init.orthogonal_(layer.weight)
                layer.bias.zero_()
            last = expect(nn.Linear, module[1])
            last.weight[kept:] = 0
            last.weight.copy_(torch.linalg.qr(noise(64, 64, seed=4)).Q @ last.weight)
            last.weight.mul_(torch.linspace(0.2, 1, 64)[:, None])
            last.bias.fill_(bias)
        check = checked(SND027(), tensors(module.to(dtype), noise(300, 64).to(dtype)))
        assert check.state == ("clear" if kept == 64 else "raised")
        assert check.tables["ranks"]["1"] == (kept, 64)
