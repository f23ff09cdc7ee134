"""What stands for nothing: fixed before, whatever else is explained."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from sonde.core import InputError
from sonde.explain import (
    Baseline,
    Deletion,
    FaithfulnessViolation,
    GradTimesInput,
    IntegratedGradients,
    Occlusion,
)
from sonde.tap.streams.site_function import SiteFunction

DRAW = torch.Generator().manual_seed(0)
ROWS, PICTURES = torch.randn(9, 4, generator=DRAW), torch.rand(5, 2, 8, 6, generator=DRAW)


@pytest.fixture(scope="module")
def nets():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        pictures = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3))
    return {"rows": (rows, ROWS, "zero"), "pictures": (pictures, PICTURES, "blur 7")}


@pytest.mark.parametrize("kind", ["rows", "pictures"])
@pytest.mark.parametrize("method", [IntegratedGradients(8), Occlusion()], ids=repr)
def test_one_example_alone_is_explained_as_among_others(nets, kind, method):
    net, x, name = nets[kind]
    alone, many = (method.explain(net, part) for part in (x[:1], x))
    torch.testing.assert_close(alone.value, many.value[:1], atol=1e-6, rtol=1e-4)
    assert float(alone.value.abs().max()) > 1e-3
    assert alone.conventions["baseline"] == name


@pytest.mark.parametrize("kind", ["rows", "pictures"])
def test_one_example_alone_is_judged_as_among_others(nets, kind):
    net, x, _ = nets[kind]
    found = [GradTimesInput().explain(net, part) for part in (x[:1], x)]
    curves = [
        Deletion(n_random=1).judge(net, part, f) for f, part in zip(found, (x[:1], x), strict=True)
    ]
    torch.testing.assert_close(curves[0].each, curves[1].each[:1])
    turned = FaithfulnessViolation().judge(net, x[:1], found[0])
    assert int(turned.ties.sum()) == 0


@pytest.mark.truth("torch's mean over the window of the shorter side")
def test_pictures_are_blurred_and_states_are_zero(nets):
    net, x, _ = nets["pictures"]
    for site, wanted in (("input", avg_pool2d(x, 7, 1, 3, count_include_pad=False)), ("0", 0.0)):
        found = Baseline().at(SiteFunction(net, x, site))
        torch.testing.assert_close(found, torch.zeros_like(found) + wanted)


@pytest.mark.truth("the mean of each feature over all rows")
def test_a_fitted_mean_is_that_of_the_data_set(nets):
    net, x, _ = nets["rows"]
    fitted = Baseline.fit(net, [x[:5], x[5:]])
    torch.testing.assert_close(fitted.values, x.mean(0))
    states = Baseline.fit(net, x, site="1")
    torch.testing.assert_close(states.values, net[1](net[0](x)).mean(0).detach())
    tokens = torch.randn(3, 5, 4, generator=DRAW)
    torch.testing.assert_close(Baseline.fit(net, tokens).values, tokens.mean((0, 1)))
    net, x, _ = nets["pictures"]
    channels = Baseline.fit(net, [x[:2], x[2:]])
    torch.testing.assert_close(channels.values, x.mean((0, 2, 3)))
    found = Baseline("mean").at(SiteFunction(net, x, "input"))
    torch.testing.assert_close(found, x.mean((0, 2, 3), keepdim=True).expand_as(x))
    assert str(fitted) == "mean of 9 fitted rows"


def test_the_mean_of_one_row_is_refused(nets):
    net, x, _ = nets["rows"]
    with pytest.raises(InputError, match=r"Baseline\.fit"):
        IntegratedGradients(8, Baseline("mean")).explain(net, x[:1])
