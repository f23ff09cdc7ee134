"""Channels without data: planted copies, least squares by another routine, and plain cuts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from models import llama, resnet18, small_vit
from sonde import Model
from sonde.compress import RTN, DataFreeCompress, PruneChannels
from sonde.core.errors import InputError


def convolutions(norm: bool = True, seed: int = 0) -> Any:
    """Return a net of two convolutions with uneven batch norm, and a flattening before the last."""
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(7) if norm else nn.Identity(), nn.ReLU()]
    net = nn.Sequential(nn.Conv2d(2, 7, 3), *norms, nn.Conv2d(7, 5, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(5 * 16, 3)).double().eval()  # fmt: skip
    if norm:
        part: Any = net[1]
        for x in (part.weight.data, part.running_var):
            x.uniform_(0.5, 1.5)
        for x in (part.bias.data, part.running_mean):
            x.uniform_(-0.4, 0.4)
    return net


@pytest.mark.parametrize("norm", [False, True])
def test_a_channel_that_another_has_twice_goes_without_a_change(norm):
    net, x = convolutions(norm), torch.randn(9, 2, 8, 8).double()
    conv: Any = net[0]
    conv.weight.data[4], conv.bias.data[4] = 0.5 * conv.weight.data[2], 0.5 * conv.bias.data[2]
    if norm:
        part: Any = net[1]
        part.running_mean[4] = 0.5 * part.running_mean[2]
        part.bias.data[4] = 0.3 * part.bias.data[2]
        scale = (part.running_var + part.eps).rsqrt() * part.weight.data
        part.weight.data[4] *= 0.6 * scale[2] / scale[4]
    rule = DataFreeCompress(remove=1 / 7, ridge=1e-12, layers=("0",))
    new = rule.plan(net, {"calibration": x}).fold(net)
    assert torch.equal(new[0].bias, conv.bias[[0, 1, 2, 3, 5, 6]])
    torch.testing.assert_close(new(x), net(x), rtol=1e-8, atol=1e-8)
    plain = DataFreeCompress(remove=1 / 7, refit=False, layers=("0",))
    assert (plain.plan(net, {"calibration": x}).fold(net)(x) - net(x)).abs().max() > 1e-2


@pytest.mark.truth("numpy's least squares on channels with batch norm put into them by torch")
def test_what_the_others_have_of_a_channel_is_least_squares():
    net, x = convolutions(), torch.randn(3, 2, 8, 8).double()
    whole: Any = torch.nn.utils.fuse_conv_bn_eval(net[0], net[1])
    rows = torch.cat([whole.weight.flatten(1), whole.bias[:, None]], 1).detach().numpy()
    order = np.abs(rows[:, :-1]).sum(1).argsort()
    gone, kept = sorted(order[:3].tolist()), sorted(order[3:].tolist())
    ways = np.linalg.lstsq(rows[kept].T, rows[gone].T, rcond=None)[0]  # (kept, gone)
    old = net[3].weight.detach().numpy()
    expected = old[:, kept] + np.einsum("ogxy,kg->okxy", old[:, gone], ways)
    rule = DataFreeCompress(remove=0.43, ridge=1e-13, layers=("0",))
    plan = rule.plan(net, {"calibration": x})
    assert plan.figures == {"units": 3.0}
    new = plan.fold(net)
    assert new[0].out_channels == 4
    np.testing.assert_allclose(new[3].weight.detach().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.essential
@pytest.mark.truth("numpy's least squares on rounded channels")
def test_rounded_channels_make_up_for_each_other():
    torch.manual_seed(3)
    net: Any = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 4), nn.Linear(4, 2)).double()
    x = torch.randn(4, 9).double()
    plan = DataFreeCompress(bits=3, group=4, ridge=1e-13, layers=("0", "2")).plan(
        net, {"calibration": x}
    )
    change: Any = RTN(bits=3, group=4, layers=("0",)).plan(net).changes["0.weight"]
    a, b = (torch.cat([w, net[0].bias[:, None]], 1).detach().numpy()
            for w in (net[0].weight, change.matrix()))  # fmt: skip
    ways = np.linalg.lstsq(b.T, a.T, rcond=None)[0].T
    new = plan.fold(net)
    expected = net[1].weight.detach().numpy() @ ways
    np.testing.assert_allclose(new[1].weight.detach().numpy(), expected, rtol=1e-5)
    whole, rtn = (
        torch.stack([rule.plan(net, {"calibration": x}).fold(net)(z) - net(z) for z in many(9)])
        for rule in (
            DataFreeCompress(bits=3, group=4, layers=("0",)),
            DataFreeCompress(bits=3, group=4, refit=False, layers=("0",)),
        )
    )
    assert whole.square().mean() < 0.8 * rtn.square().mean()


@pytest.mark.truth("numpy's least squares on the rounded channels that stay")
@pytest.mark.parametrize("group", [0, 4])
def test_channels_are_removed_and_rounded_at_once(group):
    torch.manual_seed(3)
    net: Any = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 4), nn.Linear(4, 2)).double()
    x = torch.randn(4, 9).double()
    rule = DataFreeCompress(remove=0.43, bits=3, group=group, ridge=1e-13, layers=("0",))
    plan = rule.plan(net, {"calibration": x})
    w, bias = net[0].weight.detach(), net[0].bias.detach()
    kept = sorted(w.abs().sum(1).argsort()[3:].tolist())
    change: Any = RTN(bits=3, group=group, layers=("0",)).plan(net).changes["0.weight"]
    a, b = (torch.cat([m, bias[:, None]], 1).numpy() for m in (w, change.matrix()))
    ways = np.linalg.lstsq(b[kept].T, a.T, rcond=None)[0].T
    new = plan.fold(net)
    assert plan.figures == {"units": 3.0}
    rounded = new[0](torch.eye(9).double()) - new[0](torch.zeros(1, 9).double())
    np.testing.assert_allclose(rounded.detach().numpy().T, change.matrix()[kept].numpy())
    expected = net[1].weight.detach().numpy() @ ways
    np.testing.assert_allclose(new[1].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-9)
    z = many(9)
    errors = [(other.fold(net)(z) - net(z)).square().mean().item() for other in (
        plan, DataFreeCompress(remove=0.43, bits=3, group=group, refit=False, layers=("0",)).plan(
            net, {"calibration": x}))]  # fmt: skip
    assert errors[0] < errors[1]


def test_the_next_layer_is_rounded_after_it_has_made_up_for_lost_channels():
    torch.manual_seed(4)
    net: Any = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 4)).double()
    x = torch.randn(4, 9).double()
    pair = {"remove": 0.43, "bits": 4, "group": 3, "ridge": 1e-3}
    both = DataFreeCompress(**pair).plan(net, {"calibration": x}).fold(net)
    first = DataFreeCompress(**pair, layers=("0",)).plan(net, {"calibration": x}).fold(net)
    plain = nn.Sequential(first[1])
    later = RTN(bits=4, group=3).plan(plain).fold(plain)
    torch.testing.assert_close(both(x), later(first[0](x)))
    assert both[1].in_features == 4


@pytest.mark.parametrize("what", ["vit", "convolutions"])
def test_channels_removed_and_rounded_come_back_from_disk(what, tmp_path):
    if what == "vit":
        module = small_vit()
        model = Model(module, config=module.config, task="image_classifier")
        x = torch.randn(3, 1, 8, 8)
        module.save_pretrained(tmp_path / "old")
        rule = DataFreeCompress(remove=0.5, bits=4)
        plan = rule.plan(model, {"calibration": x})
        new = plan.fold(model)
        plan.save(str(tmp_path / "old"), tmp_path / "new")
        again: Any = sonde.load(str(tmp_path / "new"), device="cpu")
        torch.testing.assert_close(again.module(x).logits, new(x).logits)
        assert again.module.vit.layers[0].mlp.fc1.out_features == 12
        files = [sum(f.stat().st_size for f in (tmp_path / n).glob("*.safetensors"))
                 for n in ("old", "new")]  # fmt: skip
        assert files[1] < 0.4 * files[0]
    else:
        net, x = convolutions(), torch.randn(3, 2, 8, 8).double()
        rule = DataFreeCompress(remove=0.4, bits=4, layers=("*",))
        new = rule.plan(net, {"calibration": x}).fold(net)
        assert (new[0].out_channels, new[3].out_channels) == (4, 3)
        values = [len(row.unique()) for row in new[3].weight.detach().flatten(1)]
        assert max(values) <= 2 * 16  # two groups: 4 maps of nine entries, 32 and 4
        one = convolutions()
        one.load_state_dict(net.state_dict())
        torch.testing.assert_close(one(x), net(x))


@pytest.mark.parametrize("rule", [PruneChannels(0.5), DataFreeCompress(0.5)])
def test_channels_of_two_layers_that_a_third_reads_side_by_side_go_from_both(rule):
    torch.manual_seed(0)
    net, x = SideBySide(), torch.randn(8, 5)
    new = rule.plan(net, {"calibration": x}).fold(net)
    assert (new.a.out_features, new.b.out_features, new.c.in_features) == (3, 2, 5)
    assert new(x).shape == (8, 3)


class SideBySide(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(10, 3)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], -1))


def many(width: int) -> torch.Tensor:
    return torch.randn(20, 30, width, generator=torch.Generator().manual_seed(1)).double()


def test_inner_channels_of_a_residual_net_go_and_streams_stay():
    net, x = resnet18(width=4, channels=1), torch.randn(2, 1, 32, 32)
    new = DataFreeCompress(remove=0.5).plan(net, {"calibration": x}).fold(net)
    assert new(x).shape == net(x).shape
    assert (new.conv1.out_channels, new.layer2[0].conv1.out_channels) == (4, 4)
    sizes = {n: m.out_channels for n, m in new.named_modules() if isinstance(m, nn.Conv2d)}
    was = {n: m.out_channels for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n in was if sizes[n] != was[n]} == {n for n in was if n.endswith(".conv1")}


def test_what_has_no_channel_of_its_own_is_refused():
    net = llama()
    model = Model(net, config=net.config, task="causal")
    with pytest.raises(
        InputError, match=r"channels no other layer shares, got none that matches \*"
    ):
        DataFreeCompress().plan(model, {"calibration": [torch.tensor([3, 1, 4])]})
    deep: Any = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(),
                              nn.Linear(64, 2))  # fmt: skip
    with pytest.raises(InputError, match="channels no other layer shares"):
        DataFreeCompress(layers=("0",)).plan(deep, {"calibration": torch.randn(2, 1, 8, 8)})
    with pytest.raises(InputError, match="ridge above 0, got 0"):
        DataFreeCompress(ridge=0)
