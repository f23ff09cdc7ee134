import math

import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._nets import assert_clear, assert_raised, evidence_of, noise, tensors
from sonde.findings.codes.snd012 import SND012
from sonde.findings.rule import Check
from sonde.findings.settings import ScanSettings


def normed(weight: float) -> nn.Sequential:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval().requires_grad_(False)
    net[0].get_parameter("weight").fill_(weight)
    return net


def ended(net: nn.Module, x: Tensor) -> Check:
    return SND012().check(evidence_of(tensors(net, x), variants=True))


@pytest.mark.slow
@pytest.mark.truth("the relative entropy of N(1, 4) and N(0, 1) is (4 + 1 - 1 - ln 4) / 2")
def test_rows_of_another_mean_and_variance_are_measured_in_nats() -> None:
    x = noise(128, 4)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    finding = assert_raised(ended(normed(2.0), 2 * x + 1), "warning")
    assert finding.figure.value == pytest.approx((4 - math.log(4)) / 2, rel=1e-3)
    assert finding.sentence.startswith("The inputs of 0 lie 1 standard deviations")
    assert "never updated" in finding.sentence
    assert_raised(ended(normed(1.0), 2 * x + 1), "note")
    assert_clear(ended(normed(2.0), x))


@pytest.mark.slow
def test_the_first_norm_that_does_not_fit_is_named() -> None:
    x = noise(128, 4)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    for _ in range(60):
        net(x)
    net.eval().requires_grad_(False)
    assert_clear(ended(net, x))
    net[1].get_parameter("weight").mul_(4)
    check = ended(net, x)
    assert check.finding is not None
    assert "The inputs of 2 lie" in check.finding.sentence
    assert "The first norm, 0, fits." in check.finding.sentence


@pytest.mark.slow
@pytest.mark.truth("planted: labels are the answers of the net with its own running variance")
def test_one_norm_among_others_that_do_not_fit_is_tried_alone() -> None:
    torch.manual_seed(3)
    layers = [nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8)]
    net = nn.Sequential(*layers, nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(256, 8)
    for i in range(80):
        net(x[3 * i :][:64] if i < 64 else x)
    net.eval().requires_grad_(False)
    net[2].get_parameter("weight").fill_(1.2)
    other = 1.7 * x + 0.2  # rows of another kind: the first norm does not fit, and that is no fault
    label = net(other).argmax(1)
    items = [{"x": a, "label": int(k)} for a, k in zip(other, label, strict=True)]
    settings = ScanSettings(progress=False, only=("SND012",))
    net[2].get_buffer("running_var").mul_(40)
    net[2].get_buffer("running_mean").add_(4.0)
    (found,) = sonde.scan(net, items, settings=settings).findings
    assert (found["level"], found["sites"]) == ("warning", ["2:out"])
    assert "running_mean and running_var of 2" in found["fix"]


@pytest.mark.slow
@pytest.mark.truth("planted: the running statistics of one norm of a net that answers maps")
def test_stale_statistics_of_a_net_that_answers_maps_are_tried_and_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(260, 1, 6, 6)
    y = ((x[:, 0] > 0.5).long() + (x[:, 0] < -0.5).long() * 2).long()
    net = nn.Sequential(nn.Conv2d(1, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 3, 1))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean += torch.linspace(-1.5, 1.5, 12)
    norm.get_buffer("running_var").mul_(torch.logspace(0, 2.5, 12))
    rows = [{"x": x[i], "label": y[i].numpy()} for i in range(len(y))]
    settings = ScanSettings(progress=False, only=("SND012", "SND015", "SND068"))
    report = sonde.scan(net, rows, settings=settings).json()
    finding = next(f for f in report["findings"] if f["code"] == "SND012")
    assert finding["trial"]["after"] > 0.9 > finding["trial"]["before"]
    assert report["cause"] == "SND012"
