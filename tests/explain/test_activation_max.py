"""Inputs that drive a unit most, where the largest value is known."""

import pytest
import torch
from torch import nn

from models import cnn
from sonde.core import InputError
from sonde.explain import ActivationMax

DRAW = torch.Generator().manual_seed(0)


@pytest.mark.truth("linear unit in a ball: r w / |w|")
def test_a_linear_unit_is_driven_along_its_weights():
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    weight = net[0].get_parameter("weight").detach()[2]
    real = torch.randn(9, 6, generator=DRAW)
    found = ActivationMax(radius=2.0).explain(net, real, site="0", unit=2)
    assert torch.allclose(found.found, 2 * weight / weight.norm(), atol=1e-3)
    assert found.value == pytest.approx(float(2 * weight.norm()), rel=1e-4)
    assert float(found.losses[-1]) == pytest.approx(float(found.value), rel=1e-3)
    natural = real @ weight
    assert torch.allclose(found.natural, natural)
    assert found.best == int(natural.argmax())
    assert found.null == pytest.approx(float(natural.max()))
    assert found.percentile == pytest.approx(float((natural < found.value).double().mean()))


@pytest.mark.truth("linear unit in a box: the corner of the signs of its weights")
def test_without_a_radius_it_stays_in_the_range_of_real_inputs():
    net = nn.Linear(5, 1, bias=False)
    real = torch.rand(50, 5, generator=DRAW)
    low, high = real.amin(0), real.amax(0)
    found = ActivationMax().explain(net, real, site="", unit=0)
    want = torch.where(net.weight[0] > 0, high, low)
    assert torch.allclose(found.found, want, atol=1e-5)


def test_a_picture_beats_real_pictures_and_the_model_is_left_as_it_was():
    net = cnn().train()
    x = torch.rand(16, 1, 28, 28, generator=DRAW)
    site = next(n for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    found = ActivationMax(steps=40).explain(net, x, site=site, unit=0)
    assert float(found.value) > float(found.natural.max())
    assert found.percentile == 1.0
    assert found.found.shape == x.shape[1:]
    assert net.training
    rough = ActivationMax(steps=40, tv=100.0).explain(net, x, site=site, unit=0)
    assert rough.found.diff(dim=2).square().mean() < found.found.diff(dim=2).square().mean()


@pytest.mark.truth("w x less both prices is largest where a linear system is solved")
def test_prices_pull_a_picture_to_the_mean_and_make_it_smooth():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).double()
    weight = net[1].get_parameter("weight").detach()[1]
    real = 5 * torch.randn(9, 1, 3, 4, generator=DRAW, dtype=torch.float64)
    down = torch.eye(12).view(12, 3, 4).diff(dim=1).reshape(12, -1).double()
    right = torch.eye(12).view(12, 3, 4).diff(dim=2).reshape(12, -1).double()
    rough = down @ down.T / down.shape[1] + right @ right.T / right.shape[1]
    l2, tv, centre = 3.0, 2.0, real.mean(0).flatten()
    want = torch.linalg.solve(
        2 * l2 / 12 * torch.eye(12).double() + 2 * tv * rough, weight + 2 * l2 / 12 * centre
    )
    search = ActivationMax(steps=120, rate=0.02, l2=l2, tv=tv, jitter=0)
    found = search.explain(net, real, site="1", unit=1)
    assert torch.allclose(found.found.flatten(), want, atol=0.1)


class Reader(nn.Module):
    """A unit that reads the mean of the embeddings along the direction of one token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 12)
        self.embed.weight.data = torch.eye(12)
        self.head = nn.Linear(12, 2, bias=False)
        self.head.weight.data = torch.eye(12)[[7, 3]]

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(1))


@pytest.mark.truth("the unit is the share of one token")
def test_a_model_of_tokens_is_ascended_in_its_embeddings():
    ids = torch.randint(12, (6, 4), generator=DRAW)
    found = ActivationMax().explain(Reader(), ids, site="head", unit=0)
    assert found.tokens is not None
    assert found.tokens.tolist() == [7, 7, 7, 7]
    assert found.token_value == pytest.approx(1.0)
    assert found.null == pytest.approx(float((ids == 7).double().mean(1).max()))


def test_a_unit_that_is_not_there_is_refused():
    net = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"unit in 0\.\.1 of .*got 2"):
        ActivationMax().explain(net, torch.ones(2, 3), site="", unit=2)
    with pytest.raises(InputError, match="rate above 0"):
        ActivationMax(rate=0.0)
