import math

import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, checked, noise, tensors
from sonde.findings.snd001 import SND001


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


def net(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), middle, nn.Linear(8, 3)).eval()


def test_the_first_site_with_infinities_is_named() -> None:
    module = net(nn.Linear(8, 8))
    with torch.no_grad():
        module[2].weight[4, 2] = math.inf
    check = checked(SND001(), tensors(module, noise(50, 6)))
    assert_raised(check, "error")
    assert check.finding is not None
    assert check.finding.sites[0] == "2"
    assert "at 2, the first of 2 such sites" in check.finding.sentence


def test_logarithms_of_negatives_are_counted_by_row() -> None:
    x = torch.rand(40, 6) + 0.1
    x[[3, 7, 11], 2] = -1.0
    module = nn.Sequential(Log(), nn.Linear(6, 3)).eval()
    check = checked(SND001(), tensors(module, x))
    assert_raised(check, "error")
    assert check.figure is not None
    assert check.figure.value == 3
    assert "3 of 40 rows hold NaN or infinity at 0" in check.finding.sentence  # type: ignore[union-attr]


def test_when_no_row_is_finite_the_site_is_still_named() -> None:
    module = net(nn.Linear(8, 8))
    with torch.no_grad():
        module[0].bias.fill_(math.nan)
    check = checked(SND001(), tensors(module, noise(20, 6)))
    assert_raised(check, "error")
    assert check.finding is not None
    assert check.finding.sites[0] == "0"
    assert check.finding.effect == 1.0


def test_finite_states_are_clear() -> None:
    assert_clear(checked(SND001(), tensors(net(nn.Linear(8, 8)), noise(50, 6))))
