"""Regressions and classifiers of one output: what a scan says of them, and the causes it names."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor, nn

import sonde
from findings import _evidence as arrays
from findings._nets import evidence_of, tensors
from sonde.findings.evidence.answers.best_probe import best_probe, input_rows
from sonde.findings.settings import ScanSettings
from sonde.report import Report

ONLY = ScanSettings(progress=False, only=("SND015", "SND037"))
COLUMNS = ("width", "mass", "age", "speed", "depth")
MEAN, SCALE = torch.tensor([30.0, 70, 40, 9, -2]), torch.tensor([6.0, 9, 12, 2, 0.7])


class Regression(nn.Module):
    """Two layers over five columns of different scales; gives ``(row,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first((x - MEAN) / SCALE).tanh())[:, 0]


class Logarithm(nn.Module):
    """Gives a three hundredth of what another net gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / 300


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained net with fresh rows and targets, which are rounded to whole numbers."""
    torch.manual_seed(0)
    z = torch.randn(900, 5)
    y = (300 + 80 * z[:, 0] - 50 * z[:, 1] * z[:, 2] + 40 * z[:, 4] + 9 * torch.randn(900)).round()
    net, x = Regression(), MEAN + SCALE * z
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    net.last.bias.data.fill_(300.0)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x[:600]), y[:600]).backward()
        optimiser.step()
    return net.requires_grad_(False).eval(), x[600:], y[600:]


def scanned(net: nn.Module, x: Tensor, y: Tensor) -> Report:
    rows = {name: x[:, i].tolist() for i, name in enumerate(COLUMNS)} | {"label": y.tolist()}
    return sonde.scan(net, rows, settings=ONLY)


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's r2_score; whole numbers are targets of a net with one output")
def test_a_regression_is_judged_by_its_numbers(trained) -> None:
    net, x, y = trained
    report = scanned(net, x, y)
    found = report.json()["answers"]
    assert found["measure"] == "rms_error"
    assert report.findings == []
    r2 = 1 - (found["value"] / found["commonest"]) ** 2
    assert r2 == pytest.approx(r2_score(y, net(x)), abs=1e-4)
    assert r2 > 0.6


@pytest.mark.slow
@pytest.mark.truth("planted: one column in another unit, two exchanged, targets of another scale")
@pytest.mark.parametrize(
    ("code", "columns", "targets", "said"),
    [
        ("SND015", lambda x: x * torch.tensor([2.54, 1, 1, 1, 1]), None, "width divided by 2.54"),
        ("SND015", lambda x: x[:, [1, 0, 2, 3, 4]], None, "width and mass exchanged"),
        ("SND037", None, lambda y: y / 1000, "y = 0.001 * y"),
    ],
)
def test_the_column_or_the_scale_that_breaks_a_regression_is_named(
    trained, code: str, columns: Callable | None, targets: Callable | None, said: str
) -> None:
    net, x, y = trained
    report = scanned(net, columns(x) if columns else x, targets(y) if targets else y)
    found = {f["code"]: f for f in report.findings}
    assert said in found[code]["fix"]
    assert [f["code"] for f in report.findings if f["because_of"] is None] == [code]


@pytest.mark.slow
@pytest.mark.truth("planted: targets of another form; the linear logarithm of another unit")
@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (lambda y: 1.8 * y + 32, "y = 1.8 * y + 32"),
        (lambda y: (y / 1000).log(), "y = y.log(); y = y -6.9"),
        (torch.log10, "y = y.log10()"),
        (lambda y: 1 / y, "y = 1 / y"),
        (lambda y: 1000 - y, "y = -y; y = y +"),
    ],
    ids=["Fahrenheit", "logarithm of thousands", "base 10", "reciprocal", "the rest of a whole"],
)
def test_targets_in_a_form_that_people_use_are_the_cause(
    trained, targets: Callable, line: str
) -> None:
    net, x, y = trained
    report = scanned(net, x, targets(y))
    assert report.cause is not None
    assert report.cause.code == "SND037"
    assert line in report.cause["fix"]
    assert "SND015" not in {f["code"] for f in report.findings}


@pytest.mark.slow
@pytest.mark.truth("planted: the net gives logarithms of the targets")
def test_logarithms_that_were_not_turned_back_are_named(trained) -> None:
    net, x, y = trained
    (found,) = scanned(Logarithm(net), x, (y / 300).exp()).findings
    assert (
        found["fix"]
        == "Give the targets in the form of training. Or bring the model's answers y into the form "
        "of these targets: y = y.exp()."
    )


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's accuracy_score")
@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_one_output_over_labels_0_and_1_is_a_class(last: nn.Module) -> None:
    x, digit = arrays.digits()
    x, label = x[digit < 2], digit[digit < 2]
    direction = x[label == 1].mean(0) - x[label == 0].mean(0)
    head = nn.Linear(64, 1)
    with torch.no_grad():
        torch.manual_seed(0)
        head.weight[0] = direction + 0.4 * torch.randn(64)
        head.bias[0] = -(x @ head.weight[0]).mean() - 0.4
    net = nn.Sequential(head, last).requires_grad_(False)
    said = (net(x)[:, 0] > (0.5 if isinstance(last, nn.Sigmoid) else 0.0)).long()
    items = [{"x": a, "label": int(k)} for a, k in zip(x, label, strict=True)]
    found = sonde.scan(net, items, settings=ONLY).json()["answers"]
    assert found["measure"] == "accuracy"
    assert found["value"] == pytest.approx(accuracy_score(label, said), abs=1e-6)
    assert 0.5 < found["value"] < 1


@pytest.mark.slow
@pytest.mark.truth("planted: two rows of five are inverted")
def test_a_form_of_a_share_of_the_rows_is_named() -> None:
    x, label = arrays.digits()
    x, label = x[:500].clone(), label[:500]
    turned = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.4
    x[turned] = 1 - x[turned]
    items = [{"x": a, "label": int(k)} for a, k in zip(x, label, strict=True)]
    (found,) = sonde.scan(arrays.net(trained=True), items, settings=ONLY).findings
    assert found["code"] == "SND015"
    assert "with inverted brightness: at least" in found["sentence"]


@pytest.mark.slow
@pytest.mark.truth("the inputs tell the targets though the last layer holds nothing of them")
def test_what_is_possible_is_asked_of_every_layer_and_of_the_inputs() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=draw)
    y = x @ torch.linspace(1, 2, 6) + 0.3 * torch.randn(400, generator=draw)
    layer, dead = nn.Linear(6, 8), nn.Linear(8, 8)
    nn.init.zeros_(dead.weight)
    with torch.no_grad():
        layer.weight[:, 1:] = 0.0  # the first layer keeps one of six columns
    net = nn.Sequential(layer, nn.ReLU(), dead, nn.ReLU(), nn.Linear(8, 1)).eval()
    stream = tensors(net, x)
    evidence = evidence_of(stream)
    evidence = replace(evidence, data=replace(evidence.data, target=y))
    evidence = evidence.having({input_rows: input_rows(stream, evidence)})
    best, without = best_probe(evidence), best_probe(evidence.having({input_rows: None}))
    assert best is not None
    assert without is not None
    assert (best.where, best.measure, best.constant) == ("its inputs", "error", 0.0)
    assert best.mean == pytest.approx(1 - 0.09 / float(y.var()), abs=0.02)
    assert without.where != "its inputs"
    assert without.mean < 0.3
    assert best.on(torch.arange(40)) == pytest.approx(
        sum(best.scores[i] for i in range(40)) / 40, abs=1e-12
    )


@pytest.mark.slow
@pytest.mark.truth("planted: targets of a weak regression in another unit; its inputs are right")
@pytest.mark.parametrize(
    ("unit", "fix"),
    [
        (lambda y: y / 10, "y = 0.1 * y"),
        (lambda y: 10 * y, "y = 10 * y"),
        (lambda y: 2.54 * y + 30, ""),
        (lambda y: 1.8 * y + 32, ""),
    ],
    ids=["tenth", "tenfold", "a line", "Fahrenheit"],
)
def test_inputs_are_not_the_cause_of_targets_in_another_unit(unit: Callable, fix: str) -> None:
    """Two free factors of columns do what one factor of the answers does."""
    draw = torch.Generator().manual_seed(4)
    x = 0.3 * torch.randn(270, 5, generator=draw) + torch.tensor([1.0, 2.0, 1.5, 3.0, 1.0])
    net = nn.Sequential(nn.Linear(5, 1)).eval()
    net[0].weight.data = torch.tensor([[40.0, 25.0, -12.0, 30.0, 0.5]])
    net[0].bias.data = torch.tensor([10.0])
    y = net(x)[:, 0].detach()
    y = y + 1.2 * y.std() * torch.randn(270, generator=draw)
    rows = {name: x[:, i].tolist() for i, name in enumerate(COLUMNS)} | {"label": unit(y).tolist()}
    report = sonde.scan(net, rows, settings=ScanSettings(progress=False))
    assert report.json()["cause"] in (("SND037",) if fix else ("SND037", None))
    if fix:
        assert fix in next(f for f in report.findings if f["code"] == "SND037")["fix"]
