"""Images that stand for a data set: moments by hand, the schedule, and what a net makes of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sonde.compress import DistillDataset, batch_norm_moments
from sonde.compress.distill_dataset import moment_gap
from sonde.core import InputError
from sonde.stats import Moments
from sonde.testing.rewrite_laws import small_net


@pytest.mark.truth("means and variances by hand, and finite differences")
def test_the_gap_of_moments():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 3, 4, 2, generator=draw, dtype=torch.float64) * 2 + 1
    rows = torch.stack([m[:, h, w] for m in maps for h in range(4) for w in range(2)])
    state = Moments("diag").observe(rows)
    assert moment_gap(maps, state).item() == pytest.approx(0.0, abs=1e-12)
    x = (maps + torch.randn(maps.shape, generator=draw)).requires_grad_()
    values = [x[:, c].detach().flatten() for c in range(3)]
    means = [float(v.mean() - rows[:, c].mean()) for c, v in enumerate(values)]
    spread = [
        float(v.var(correction=0) - rows[:, c].var(correction=0)) for c, v in enumerate(values)
    ]
    wanted = math.dist(means, [0] * 3) + math.dist(spread, [0] * 3)
    assert moment_gap(x, state).item() == pytest.approx(wanted)
    assert torch.autograd.gradcheck(lambda v: moment_gap(v, state), [x])
    flat = moment_gap(rows.reshape(5, 8, 3), state)
    assert flat.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.truth("the ends of both schedules")
def test_the_smallest_crop_falls_from_the_whole_image():
    for schedule, middle in (("linear", 0.55), ("cosine", 0.55)):
        how = DistillDataset(steps=101, crop=0.1, ramp=0.6, schedule=schedule)
        found = [how.smallest(step) for step in range(101)]
        assert found[0] == 1.0
        assert found[30] == pytest.approx(middle)
        assert found[60:] == pytest.approx([0.1] * 41)
        assert found == sorted(found, reverse=True)
    assert DistillDataset(ramp=0.0).smallest(0) == pytest.approx(0.08)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [1.0, 0.3])
def test_a_net_sees_the_classes_and_the_moments(crop):
    net, label = small_net(), torch.tensor([0, 1, 1, 1, 0, 0])
    with torch.no_grad():
        net[11].weight.mul_(20.0)  # answers that differ
    moments = batch_norm_moments(net)
    assert moments["1"].variance.equal(net[1].running_var.double())
    how = DistillDataset(steps=80, crop=crop, weight=0.5, rate=0.1, low=-3.0, high=3.0)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    state = torch.random.get_rng_state()
    found = how.distil(net, moments, label, (1, 8, 8))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert found.probs.argmax(1).equal(label)
    torch.testing.assert_close(found.probs, net(found.x).softmax(1).detach())
    assert -3.0 <= float(found.x.min()) < float(found.x.max()) <= 3.0

    def gap(x):
        with torch.no_grad():
            inputs = {str(i): net[:i](x) for i in (1, 4, 7)}
        return sum(float(moment_gap(v, moments[name])) for name, v in inputs.items())

    without = replace(how, weight=0.0).distil(net, moments, label, (1, 8, 8))
    assert gap(found.x) < 0.85 * gap(without.x)
    assert how.distil(net, moments, label, (1, 8, 8)).x.equal(found.x)


@pytest.mark.truth("the middle of the range and a quarter of its width")
def test_images_start_around_the_middle_of_their_range():
    net, label = small_net(), torch.zeros(9, dtype=torch.int64)
    how = DistillDataset(steps=1, crop=1.0, rate=1e-9, low=2.0, high=6.0)
    x = how.distil(net, batch_norm_moments(net), label, (1, 8, 8)).x
    assert float(x.mean()) == pytest.approx(4.0, abs=0.15)
    assert float(x.quantile(0.84) - x.quantile(0.16)) == pytest.approx(2.0, abs=0.3)


def test_what_does_not_fit_is_refused():
    net = small_net()
    with pytest.raises(InputError, match="expected batch norms with running statistics"):
        batch_norm_moments(nn.Linear(2, 2))
    state = Moments("diag").observe(torch.rand(5, 3))
    label = torch.tensor([0])
    with pytest.raises(InputError, match=r"layers of the model, .* got \['x'\]"):
        DistillDataset().distil(net, {"x:in": state}, label, (1, 8, 8))
    with pytest.raises(InputError, match="moments of 4 channels, got 3"):
        DistillDataset().distil(net, {"1:in": state}, label, (1, 8, 8))
    with pytest.raises(InputError, match=r"crop in \(0, 1\], got 0\.0"):
        DistillDataset(crop=0.0)
