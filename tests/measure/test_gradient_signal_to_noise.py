import math

import numpy as np
import pytest
import torch

import models
from narrow import present
from sonde.core import InputError, Model
from sonde.engine.running import Running
from sonde.measure import GradientSignalToNoise, gradient_signal_to_noise
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.training.callback import Recorder


def gaussian(n, seed, mean, spread):
    draw = torch.Generator().manual_seed(seed)
    return mean + spread * torch.randn(n, len(mean), generator=draw, dtype=torch.float64)


MEAN = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)


@pytest.mark.truth("gaussian gradients of known mean and variance, and means of batches of them")
def test_gaussian_gradients():
    rows = gaussian(40_000, 0, MEAN, SPREAD)
    found = gradient_signal_to_noise(rows)
    assert float(found) == pytest.approx(0.5 / 3, abs=4 * float(present(found.se)))
    assert found.ratio.tolist() == pytest.approx((MEAN / SPREAD).abs().tolist(), abs=0.015)
    sixteen = gradient_signal_to_noise(rows, batch=16)
    assert sixteen.value == pytest.approx(4 * found.value)
    batches = rows.reshape(-1, 16, 3).mean(1)
    by_hand = batches.mean(0).norm() / batches.var(0).sum().sqrt()
    assert sixteen.value == pytest.approx(float(by_hand), rel=0.03)
    assert sixteen.noise == pytest.approx(3 / 4, rel=0.01)


@pytest.mark.essential
@pytest.mark.truth("mean and spread of the value over fresh draws")
def test_errors_and_what_chance_adds():
    for size, poor in ((0.0, True), (0.5, False)):
        runs = [gradient_signal_to_noise(gaussian(300, s, size * MEAN, SPREAD)) for s in range(40)]
        values = np.array([float(r) for r in runs])
        true = size * 0.5 / 3
        assert np.mean(values**2) == pytest.approx(
            true**2 + float(present(runs[0].null)) ** 2, rel=0.25
        )
        corrected = [r.corrected_square for r in runs]
        error = float(np.std(corrected)) / math.sqrt(len(runs))
        assert np.mean(corrected) == pytest.approx(true**2, abs=4 * error)
        if poor:
            assert np.mean([r.flags == ("se_first_order",) for r in runs]) > 0.95
    runs = [gradient_signal_to_noise(gaussian(300, s, 3 * MEAN, SPREAD)) for s in range(40)]
    assert not any(r.flags for r in runs)
    spread = np.std([float(r) for r in runs])
    assert np.mean([float(present(r.se)) for r in runs]) == pytest.approx(spread, rel=0.3)


@pytest.mark.truth("torch on all rows at once")
def test_rows_of_weight_gradients_fed_batch_by_batch():
    layer = torch.nn.Linear(3, 2)
    rows, halves = [], [Running(GradientSignalToNoise(objective=None)) for _ in range(2)]
    for i in range(12):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        (g,) = torch.autograd.grad(layer(x).square().mean(), layer.weight)
        rows.append(g.flatten())
        halves[i % 2].update(g.reshape(1, -1), grad=g.reshape(1, -1))
    halves[0].merge(halves[1])
    every = torch.stack(rows).double()
    want = every.mean(0).norm() / every.var(0).sum().sqrt()
    assert halves[0].result().value == pytest.approx(float(want), rel=1e-9)


@pytest.mark.truth("gradients of the bias, one backward pass for each example")
def test_a_model_that_trains():
    net, x = models.mlp(), torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    parameters = dict(net.named_parameters())
    label = torch.arange(20) % 4
    probe = [(row, int(c)) for row, c in zip(x, label, strict=True)]
    stream = read(Model(net), probe, sites=["0", "2"], objective="nll")
    found = fit(GradientSignalToNoise(), stream, progress=False)
    for name in ("0", "2"):
        rows = []
        for row, c in zip(x, label, strict=True):
            loss = torch.nn.functional.cross_entropy(net(row[None]), c[None])
            rows.append(torch.autograd.grad(loss, parameters[f"{name}.bias"])[0].double())
        every = torch.stack(rows)
        want = every.mean(0).norm() / every.var(0).sum().sqrt()
        result = found.result("gradient_signal_to_noise", f"{name}:out")
        assert result.value == pytest.approx(float(want), rel=1e-5)


def test_over_the_steps_of_a_training(tmp_path):
    net = models.mlp()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(40, 8, generator=draw)
    probe = [(row, int(row[:4].argmax())) for row in x]
    recorder = Recorder(
        GradientSignalToNoise(), probe, tmp_path / "run.track", sites=["0", "2"], objective="nll"
    )
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(61):
        if step % 60 == 0:
            recorder.record(net, step)
        loss = torch.nn.functional.cross_entropy(net(x), x[:, :4].argmax(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    curve = [r["value"] for r in recorder.track.table().to_pylist() if r["site"] == "2:out"]
    assert curve[1] < curve[0]  # gradients of a fitted net cancel


def lengths(output, batch):
    """Return the sum of squared outputs."""
    return output.square().sum()


def test_gradients_of_another_objective_are_refused():
    net = models.mlp()
    stream = read(Model(net), list(torch.randn(6, 8)), sites="0", objective="kl_uniform")
    with pytest.raises(InputError, match="objective='nll', got 'kl_uniform'"):
        fit(GradientSignalToNoise(), stream, progress=False)
    own = read(Model(net), list(torch.randn(6, 8)), sites="4", objective=lengths)
    taken = fit(GradientSignalToNoise(objective=None), own, progress=False)
    with torch.no_grad():
        rows = torch.cat([2 * batch.rows["4:out"].double() for batch in own])
    want = rows.mean(0).norm() / rows.var(0).sum().sqrt()
    assert float(taken.result("gradient_signal_to_noise", "4:out")) == pytest.approx(float(want))


def test_gradients_that_are_all_alike_have_no_noise():
    found = gradient_signal_to_noise(torch.ones(5, 3))
    assert found.flags == ("dead",)
    assert math.isnan(float(found))
    with pytest.raises(InputError, match="batch of at least 1, got 0"):
        gradient_signal_to_noise(torch.randn(4, 2), batch=0)
