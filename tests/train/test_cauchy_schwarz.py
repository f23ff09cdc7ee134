"""The kernel bottleneck: population values in closed form, and the measure of the same quantity."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.measure import cauchy_schwarz_information
from sonde.stats import conditional_divergence
from sonde.train import CauchySchwarzBottleneck


def rows(n, dim=1, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("closed form: conditional divergence of normals that differ by a constant")
def test_a_prediction_that_is_off_by_one():
    n, width = 1500, 0.3
    x = torch.rand(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, other = x + rows(n, seed=2), x + 1 + rows(n, seed=3)
    loss = CauchySchwarzBottleneck(0.0, (0.1, 1.0, width))
    found = float(loss(x, None, other, y))
    assert found == pytest.approx(1 / (2 + width**2), abs=0.1)  # its spread is .04
    assert float(loss(x, None, y, y)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.truth("the formula by loops over pairs of rows")
def test_the_divergence_by_loops():
    x, y, other = rows(7, 2, 4), rows(7, 1, 5), rows(7, 1, 6)

    def near(a, b):
        return math.exp(-float((a - b).square().sum()) / 2)

    sums = [0.0, 0.0, 0.0]
    for i in range(7):
        k = [near(x[i], x[j]) for j in range(7)]
        for part, (a, b) in enumerate(((y, y), (other, other), (y, other))):
            sums[part] += sum(k[j] * near(a[i], b[j]) for j in range(7)) / sum(k) ** 2
    expected = math.log(sums[0]) + math.log(sums[1]) - 2 * math.log(sums[2])
    assert float(conditional_divergence(x, y, other)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.truth("sonde.measure.cauchy_schwarz_information")
def test_what_the_site_keeps_is_the_measured_number():
    x = rows(40, 3, 7)
    before = torch.cat((x[:, :1] + 0.5 * rows(40, 1, 8), rows(40, 1, 9)), 1)
    loss = CauchySchwarzBottleneck(2.0, (1.3, 0.8, 1.0))
    y = rows(40, 1, 10)
    expected = cauchy_schwarz_information(x, before, sigma=(1.3, 0.8)).value
    assert float(loss(x, before, y, y)) == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.truth("two groups of inputs, with means of -1 and 1, in closed form for one row each")
def test_the_divergence_is_given_the_input():
    y = torch.tensor([[-50.0], [50.0]])
    target, loss = torch.tensor([[-1.0], [1.0]]), CauchySchwarzBottleneck(0.0, (1.0, 1.0, 1.0))
    found = float(loss(torch.zeros(2, 1), y, -target, target))
    assert found == pytest.approx(4.0)  # 2 ln 2 - 2 ln 2 exp(-2^2 / 2); 0 given the bottleneck
    with pytest.raises(InputError, match=r"expected y, the input, for beta 0\.5, got None"):
        CauchySchwarzBottleneck(0.5)(y, None, target, target)


@pytest.mark.truth("a linear target, known but for noise of a tenth of its variance")
def test_a_small_net_learns_by_the_documented_call():
    x = rows(512, 6, 11).float()
    target = (x @ torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])).unsqueeze(1) / 1.5
    target = target + 0.33 * rows(512, 1, 12).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        head, loss = torch.nn.Linear(4, 1), CauchySchwarzBottleneck()
    step = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(150):
        step.zero_grad()
        site = body(x[:256])
        loss(site, x[:256], head(site), target[:256]).backward()
        step.step()
    missed = (head(body(x[256:])) - target[256:]).square().mean() / target[256:].var()
    assert missed.item() < 0.4


@pytest.mark.truth("the same rows, widths and targets in another unit each")
def test_the_unit_of_a_side_goes_with_its_width():
    x, y, other = rows(30, 2, 4), rows(30, 1, 5), rows(30, 1, 6)
    want = CauchySchwarzBottleneck(0.0, (0.7, 1.0, 1.3))(x, None, other, y)
    found = CauchySchwarzBottleneck(0.0, (2.1, 1.0, 0.65))(3 * x, None, other / 2, y / 2)
    torch.testing.assert_close(found, want)


def test_widths_stay_and_shapes_must_agree():
    loss = CauchySchwarzBottleneck()
    loss(rows(20), rows(20, 2, 1), rows(20, 1, 2)[:, 0], rows(20, 1, 3)[:, 0])
    held = loss.widths.clone()
    loss(5 * rows(20), rows(20, 2, 1), rows(20), rows(20))
    assert torch.equal(loss.widths, held)
    assert "widths" in loss.state_dict()
    with pytest.raises(InputError, match="as many predictions as targets in each row, got 2 and 1"):
        loss(rows(4), rows(4), rows(4, 2), rows(4))
