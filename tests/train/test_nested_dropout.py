"""Ordered units: the law of the width, principal axes in closed form, and the site of a model."""

import pytest
import torch
from torch import nn

import sonde
from sonde.core import InputError
from sonde.edit import Function
from sonde.train import NestedDropout


@pytest.mark.truth("sums of exp(-(k / std)^2) in closed form, printed to four places")
def test_a_unit_is_kept_as_often_as_the_law_says():
    nested = NestedDropout(std=4.0, per="row")
    printed = [1.0, 0.6915, 0.4357, 0.2486, 0.1278, 0.0589]
    torch.testing.assert_close(
        nested.kept(16)[:6], torch.tensor(printed, dtype=torch.float64), atol=5e-5, rtol=0
    )
    share = (nested(torch.ones(20_000, 16)) > 0).double().mean(0)
    torch.testing.assert_close(share, nested.kept(16), atol=0.015, rtol=0)
    deep = nested(torch.ones(7, 3, 16))
    assert torch.equal(deep, deep[:, :1].expand(7, 3, 16))  # a width for each row
    assert len(deep[:, 0].sum(1).unique()) > 1
    rate = NestedDropout("geometric", rate=0.3).chances(50)
    torch.testing.assert_close(rate[1:] / rate[:-1], torch.full((49,), 0.7).double())


@pytest.mark.truth("closed form: principal axes in the order of their variance")
def test_a_linear_decoder_finds_the_principal_axes_in_order():
    turn = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    )[0]
    root = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64).sqrt()
    x = torch.cat((torch.diag(root), -torch.diag(root))) @ turn.T * 2  # covariance 4 2 1 .5
    down = nn.Parameter((turn.T[:3].flip(0) + 0.3).contiguous())
    up = nn.Parameter(down.detach().T.contiguous())

    def each():
        cut = [NestedDropout.truncated(k) for k in (1, 2, 3)]
        return sum(((x - one(x @ down.T) @ up.T) ** 2).sum(1).mean() for one in cut) / 3

    solver = torch.optim.LBFGS(
        [down, up],
        max_iter=2000,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def value():
        solver.zero_grad()
        found = each()
        found.backward()
        return found

    solver.step(value)
    assert each().item() == pytest.approx((3.5 + 1.5 + 0.5) / 3, rel=1e-6)
    found = up.detach()
    cos = (found / found.norm(dim=0)).T @ turn[:, :3]
    torch.testing.assert_close(cos.abs(), torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_at_a_site_gradients_are_those_of_the_layer():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    x, nested = torch.randn(5, 3), NestedDropout(widths=(2, 4))
    with sonde.editing(net, Function(nested.change), "1"):
        net(x).square().sum().backward()
    found = net[0].weight.grad.clone()
    net.zero_grad()
    again = NestedDropout(widths=(2, 4))
    net[2](again(net[1](net[0](x)))).square().sum().backward()
    assert torch.equal(found, net[0].weight.grad)
    assert torch.count_nonzero(found) in range(1, 13)  # at most four of six units
    resumed = NestedDropout(widths=(2, 4), per="row")
    resumed.load_state_dict(again.state_dict())
    ones = torch.ones(9, 6)
    follows = NestedDropout(widths=(2, 4), per="row")
    follows(ones)
    assert torch.equal(resumed(ones), follows(ones))


def test_evaluation_is_the_identity_and_widths_must_fit():
    x = torch.ones(2, 6)
    assert NestedDropout().eval()(x) is x
    with pytest.raises(InputError, match=r"widths of at most 6"):
        NestedDropout(widths=(7,))(x)
