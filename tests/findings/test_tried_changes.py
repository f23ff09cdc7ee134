"""What was said with a wrong cause once: each is told by what was tried, or not at all."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import sonde
from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd033 import SND033
from sonde.findings.codes.snd046 import SND046
from sonde.findings.evidence.trials.input_forms import IMAGENET
from sonde.findings.evidence.trials.simplest_factor import simplest_factor
from sonde.findings.settings import ScanSettings

OWN = {"labels_are_models": True}
ONLY_FORMS = ScanSettings(progress=False, only=("SND015", "SND068"))


@pytest.mark.parametrize(
    ("low", "high", "chosen"), [(3.5, 60.0, 10.0), (2.3, 2.8, 2.54), (0.015, 0.9, 0.1)]
)
def test_the_simplest_factor_of_those_that_do_as_well(
    low: float, high: float, chosen: float
) -> None:
    def scores(factor: float) -> Tensor:
        return torch.full((40,), float(low <= factor <= high))

    best = 39.37008 if low < 39.37008 < high else 2.54 if low < 2.54 < high else 0.0254
    found = simplest_factor(scores, best, (2.54, 39.37008, 0.0254))
    assert found.factor == chosen
    assert low <= found.low <= chosen <= found.high <= high


def test_one_of_two_classes_that_is_never_answered_takes_a_constant() -> None:
    draw = torch.Generator().manual_seed(3)
    label = (torch.rand(400, generator=draw) < 0.4).long()
    x = torch.randn(400, 6, generator=draw) + 3.0 * label[:, None]
    logits = torch.stack([torch.zeros(400), x.mean(1) * 4 - 6], 1).double()
    shifted = logits - torch.tensor([0.0, 30.0])
    finding = assert_raised(
        SND046().check(arrays.evidence_of(x, label=label, logits=shifted, facts=OWN)), "warning"
    )
    assert finding.classes == ("1",)
    assert finding.trial is not None
    assert finding.trial.holds
    assert float(finding.trial.after.mean()) > 0.95
    assert "logits[:, " in finding.fix
    assert_clear(SND046().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN)))


def test_a_class_that_the_model_recognises_is_not_told_by_a_probe() -> None:
    x, label = arrays.digits()
    both = (label == 3) | (label == 8)
    coin = torch.rand(len(label), generator=torch.Generator().manual_seed(0)) < 0.5
    label = torch.where(both, torch.where(coin, 3, 8), label)
    for answer, state in ((label, "clear"), (torch.where(both, 3, label), "raised")):
        logits = 9 * one_hot(answer, 10).double()
        check = SND033().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))
        assert check.state == state
    assert check.finding is not None
    assert "The model itself recognises 0 %" in check.finding.sentence


def transferred() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a head on a frozen trunk whose norm was trained on rows of another kind."""
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
    for layer in (net[0], net[3]):
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) / 2
    with torch.no_grad():
        for _ in range(60):
            net[:2](torch.randn(64, 6, generator=draw))
    net.eval()
    label = torch.randint(0, 3, (600,), generator=draw)
    x = torch.randn(600, 6, generator=draw) + 2.5 * torch.eye(3, 6)[label] + 2.0
    fit = torch.optim.Adam(net[3].parameters(), 0.05)
    for _ in range(200):
        fit.zero_grad()
        cross_entropy(net(x[:300]), label[:300]).backward()
        fit.step()
    return net.requires_grad_(False), x[300:], label[300:]


@pytest.mark.slow
@pytest.mark.truth("the pixels by which the pictures were moved")
def test_pictures_that_are_moved_by_several_pixels_are_told_with_the_way_back() -> None:
    x, label = arrays.digits()
    pictures = torch.zeros(1_300, 1, 12, 12)
    pictures[:, :, 2:10, 2:10] = x[:1_300].reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10))
    fit = torch.optim.Adam(net.parameters(), 3e-3)
    with torch.enable_grad():
        for rows in torch.randint(0, 900, (200, 128)):
            fit.zero_grad()
            cross_entropy(net(pictures[rows]), label[rows]).backward()
            fit.step()
    net.eval().requires_grad_(False)
    moved = pictures[900:].roll(3, -1)
    rows = [{"x": p, "label": int(k)} for p, k in zip(moved, label[900:1_300], strict=True)]
    report = sonde.scan(net, rows, settings=ScanSettings(progress=False, only=("SND015",)))
    (finding,) = report.findings
    assert finding["fix"].startswith(
        "x = x.reshape(-1, 1, 12, 12).roll(-3, -1).reshape(x.shape): correct on 9"
    )


@pytest.mark.slow
def test_norms_of_a_frozen_trunk_are_not_accused() -> None:
    net, x, label = transferred()
    rows = [{"x": r, "label": int(k)} for r, k in zip(x, label, strict=True)]
    settings = ScanSettings(progress=False, only=("SND012",))
    found = sonde.scan(net, rows, settings=settings).json()
    assert found["cause"] is None
    (finding,) = found["findings"]
    assert finding["level"] == "note"
    assert "these inputs differ in kind" in finding["fix"]


class Tinted(nn.Module):
    """Names the channel of a normalised picture that is brightest, all channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3)]))
            self.first.bias.zero_()
            self.last.weight.copy_(torch.cat([3 * torch.eye(3), -3 * torch.eye(3)], 1))
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.mean((2, 3))).relu())


def _tinted(seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures in 0..1 and the brightest channel after normalisation."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (420,), generator=draw)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    tint = 0.9 * nn.functional.one_hot(label, 3) + 0.3 * torch.randn(420, 3, generator=draw)
    x = tint[:, :, None, None] + 0.2 * torch.randn(420, 3, 6, 6, generator=draw)
    return (std * x + mean).clamp(0, 1), label


@pytest.mark.slow
@pytest.mark.truth("planted: channels in reverse order, and pictures that were not normalised")
def test_two_faults_of_the_inputs_at_once_are_the_cause() -> None:
    x, label = _tinted(4)
    report = sonde.scan(Tinted().eval(), (x.flip(1), label), settings=ONLY_FORMS).json()
    assert report["cause"] == "SND015"
    finding = next(f for f in report["findings"] if f["code"] == "SND015")
    code = finding["fix"].split(": correct on")[0]
    names = {"x": x.flip(1), "mean": None, "std": None}
    names["mean"], names["std"] = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    exec(code, names)  # what a user would paste
    given = Tinted()(x.flip(1)).argmax(1)
    right = (Tinted()(names["x"]).argmax(1) == label).double().mean()
    assert float((given == label).double().mean()) < 0.7
    assert float(right) > 0.9
    assert finding["trial"]["after"] == pytest.approx(float(right), abs=0.06)


@pytest.mark.slow
@pytest.mark.truth("planted: one fault; a second change on top of its form would be chance")
def test_one_fault_of_the_inputs_takes_one_change() -> None:
    x, label = _tinted(5)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    given = ((x - mean) / std).flip(1)
    report = sonde.scan(Tinted().eval(), (given, label), settings=ONLY_FORMS).json()
    finding = next(f for f in report["findings"] if f["code"] == "SND015")
    assert finding["fix"].startswith("x = x.flip(1)  # channels: ")
