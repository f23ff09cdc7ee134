import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from torch import Tensor, nn

import sonde
from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, evidence_of, noise, tensors
from sonde.findings.codes.snd015 import SND015
from sonde.findings.evidence.trials.input_forms import changes, column_changes, line_of, one_column
from sonde.findings.evidence.trials.input_trials import (
    MendedRows,
    Tried,
    VariantEvidence,
    variant_evidence,
)
from sonde.findings.rule import Check
from sonde.findings.settings import ScanSettings
from sonde.report import Report

ONLY = ScanSettings(progress=False, only=("SND015",))


def scanned(net: nn.Module, x: Tensor, label: Tensor | None) -> Report:
    names = [None] * len(x) if label is None else label.tolist()
    items = [{"x": a} if k is None else {"x": a, "label": k} for a, k in zip(x, names, strict=True)]
    return sonde.scan(net, items, settings=ONLY)


def turned(x: Tensor) -> Tensor:
    return x.reshape(-1, 8, 8).transpose(1, 2).reshape(-1, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: 1 - x, "with inverted brightness"),
        (turned, "with height and width exchanged"),
        (lambda x: x.roll(1, 1), "moved by one to the left"),
    ],
)
def test_the_form_that_the_model_was_trained_on_is_named(
    change: Callable[[Tensor], Tensor], said: str
) -> None:
    x, label = arrays.digits()
    net = arrays.net(trained=True)
    (found,) = scanned(net, change(x[:400]), label[:400]).findings
    assert said in found["sentence"]
    assert found["level"] == "error"


@pytest.mark.slow
@pytest.mark.truth("planted: pictures with rows and columns exchanged")
def test_a_small_budget_tries_rows_of_all_classes_of_sorted_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sonde.findings.trial_budget.SECONDS", 0.0025)
    x, label = arrays.digits()
    order = torch.argsort(label[:400], stable=True)
    net = arrays.net(trained=True)
    (found,) = scanned(net, turned(x[:400])[order], label[:400][order]).findings
    assert "with height and width exchanged" in found["sentence"]
    assert found["figure"]["n_rows"] >= 150  # most rows judge, not those few that are tried first


@pytest.mark.slow
def test_a_model_that_is_right_and_one_that_never_learned_are_clear() -> None:
    x, label = arrays.digits()
    for trained in (True, False):
        report = scanned(arrays.net(trained=trained), x[:400], label[:400])
        assert [c["state"] for c in report.json()["checks"]] == ["clear"]


@pytest.mark.slow
@pytest.mark.truth("planted: two sensors of a series are exchanged")
def test_two_exchanged_channels_of_a_series_are_named() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 4)).eval().requires_grad_(False)
    x = torch.randn(300, 6, 4)
    (found,) = scanned(net, x[:, [0, 4, 2, 3, 1, 5]], net(x).argmax(1)).findings
    assert "with channels 1 and 4 along axis 1 exchanged" in found["sentence"]


@pytest.mark.slow
def test_a_third_in_bgr_is_found_on_the_rows_that_a_good_model_gets_wrong() -> None:
    hues = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.8, 0.2], [0.5, 0.4, 0.5], [0.3, 0.1, 0.3]])
    nearest = nn.Linear(3, 4)
    nearest.weight.data, nearest.bias.data = hues.clone(), -hues.square().sum(1) / 2
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nearest).eval()
    label = torch.arange(480) % 4
    ink = hues[label] + 0.02 * noise(480, 3)
    x = ink[:, :, None, None] * (1 + 0.1 * noise(480, 16).reshape(480, 1, 4, 4))
    third = (torch.arange(480) // 4 % 3 == 1).reshape(-1, 1, 1, 1)
    (found,) = scanned(net, torch.where(third, x.flip(1), x), label).findings
    assert "BGR for RGB): at least 8.3 % of all rows" in found["sentence"]
    nearest.bias.data[3] -= 0.08
    faint = x + 0.05 * noise(480, 3, seed=1)[:, :, None, None]
    assert int((net(faint).argmax(1) != label).sum()) >= 40
    assert not scanned(net, faint, label).findings


@pytest.mark.slow
@pytest.mark.parametrize(("k", "shift"), [(2, -0.1), (3, -0.1), (5, -0.08)])
def test_rows_beyond_a_shifted_threshold_are_in_no_other_form(k: int, shift: float) -> None:
    """Classes by mean brightness; faint or bright rows are wrong, and a power moves them back."""
    net = nn.Linear(64, k).requires_grad_(False)
    net.weight.copy_(20 / 64 * torch.arange(k).float()[:, None].expand(k, 64))
    edges = torch.cat([torch.zeros(1), torch.linspace(0.3, 0.7, k - 1).cumsum(0)])
    net.bias.copy_(-20 * edges)
    level = 0.05 + 0.9 * torch.rand(600, 1, generator=torch.Generator().manual_seed(3))
    x = (level + 0.12 * noise(600, 64)).clamp(0, 1)
    label = net(x).argmax(1)
    net.bias[1:] -= 20 * shift
    assert 0.85 < float((net(x).argmax(1) == label).double().mean()) < 0.95
    (check,) = scanned(net, x, label).json()["checks"]
    assert (check["state"], "bias on the logit" in check["reason"]) == ("clear", True)


@pytest.mark.slow
def test_channels_in_another_order_are_seen_at_the_first_norm_without_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    means = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1, 1)
    x = means + torch.randn(64, 3, 8, 8, generator=draw)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for _ in range(60):
        net(x)
    net.eval().requires_grad_(False)
    assert_clear(SND015().check(evidence_of(tensors(net, x), variants=True)))
    finding = assert_raised(
        SND015().check(evidence_of(tensors(net, x.flip(1)), variants=True)), "error"
    )
    assert "with channels in reverse order (BGR for RGB)" in finding.sentence


@pytest.mark.truth("each form of the shipped list undoes what it is named for")
def test_every_form_has_the_shape_of_the_inputs() -> None:
    for shape in ((6, 16), (6, 15), (6, 3, 4, 4), (6, 5, 7)):
        x = torch.randn(shape)
        assert all(change(x).shape == x.shape for change in changes(x).values())


@pytest.mark.truth("the line of each form, run as it is printed")
@pytest.mark.parametrize(
    "x",
    [torch.rand(12, 3, 8, 8), torch.rand(12, 64) * 255, torch.rand(12, 5) + 1,
     torch.rand(12, 5, 4) + 1],
    ids=["colour", "flattened", "table", "sequence"],
)  # fmt: skip
def test_every_line_of_code_does_what_its_form_does(x: Tensor) -> None:
    names = [f"c{i}" for i in range(5)] if x.shape[1:] == (5,) else []
    forms = changes(x, not names) | column_changes(x, names)
    for words, change in forms.items():
        made = change(x)
        form = Tried(words, None, math.nan, code=line_of(change), change=change)
        if not form.line or "std" in form.line:
            continue  # a factor and an offset of all numbers, or constants of the training rows
        space = {"torch": torch, "x": x.clone()}
        exec(form.line, space)
        size = float(made.abs().max())  # constants are printed to six digits
        torch.testing.assert_close(space["x"], made, rtol=1e-3, atol=1e-3 * size, msg=form.line)
    scaled = {w for w, c in forms.items() if not line_of(c)}
    assert not [w for w in scaled if "exchanged" in w or "moved by 2" in w or "power of c" in w]


@pytest.mark.slow
@pytest.mark.truth("planted: a third of the pictures at another gamma")
@pytest.mark.parametrize(("power", "undone"), [(3.0, "0.33"), (1 / 3, "3")])
def test_a_third_at_another_gamma_is_found_with_its_gain(power: float, undone: str) -> None:
    levels = torch.tensor([0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
    nearest = nn.Linear(1, 6)
    nearest.weight.data, nearest.bias.data = levels[:, None].clone(), -levels.square() / 2
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nearest).eval()
    label = torch.arange(600) % 6
    x = levels[label][:, None, None, None] + 0.03 * noise(600, 36).reshape(600, 1, 6, 6)
    x = x.clamp(0, 1)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0.0, 1.0
    bent = torch.rand(600, generator=torch.Generator().manual_seed(1)) < 1 / 3
    (found,) = scanned(net, torch.where(bent[:, None, None, None], x**power, x), label).findings
    assert f"with their brightness to the power of {undone}: at least" in found["sentence"]
    assert not scanned(net, x, label).findings


@pytest.fixture(scope="module")
def curved() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net that is right about two curved columns of five, with rows it has not seen."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(1000, 5, generator=draw)
    y = (2 * x[:, 1]).sin() + x[:, 3].abs() + 0.3 * x[:, 0]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    descent = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        rows = torch.randint(0, 600, (128,), generator=draw)
        loss = nn.functional.mse_loss(net(x[rows])[:, 0], y[rows])
        descent.zero_grad()
        loss.backward()
        descent.step()
    return net.eval(), x[600:], y[600:]


@pytest.mark.slow
@pytest.mark.truth("planted: noise in two columns")
def test_two_columns_of_noise_are_named_together(curved) -> None:
    net, x, y = curved
    draw = torch.Generator().manual_seed(8)
    x = x.clone()
    x[:, [0, 3]] += 6 * torch.randn(len(x), 2, generator=draw)
    frame = pd.DataFrame(x.numpy(), columns=list("abcde")).assign(label=y.numpy())
    report = sonde.scan(net, frame, settings=ScanSettings(progress=False))
    finding = next(f for f in report.findings if f.code == "SND015")
    assert report.json()["cause"] is None
    assert sorted(finding["location"]["columns"]) == [0, 3]
    assert "held at their medians" in finding["sentence"]
    assert "values of these columns" in finding["sentence"]


class Stored(nn.Module):
    """A net that stores the mean and the standard deviation of its columns."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@pytest.mark.slow
@pytest.mark.truth("planted: columns cut to whole numbers; counts and flags are whole numbers")
def test_columns_cut_to_whole_numbers_are_named(wines) -> None:
    net, x, y = wines
    mean, std = 0.3 * torch.arange(13) + 0.1, torch.full((13,), 0.2)
    mean[:4], std[:4] = torch.tensor([0.3, 12.4, 0.02, 130.0]), torch.tensor([0.46, 3.0, 0.14, 9.0])
    model = Stored(net, mean, std).eval()
    x = mean + std * x
    x[:, :4] = x[:, :4].round()
    names = [*"abcdefghijklm"]

    def of(x: Tensor) -> list[Any]:
        frame = pd.DataFrame(x.numpy(), columns=names).assign(label=y.numpy())
        report = sonde.scan(model, frame, settings=ScanSettings(progress=False))
        return [f for f in report.findings if "whole numbers" in f.sentence]

    assert not of(x)
    (finding,) = of(x.trunc())
    assert finding["location"]["columns"] == names[4:]
    assert finding.level == "error"
    unnamed = sonde.scan(model, (x.trunc(), y), progress=False)
    (finding,) = (f for f in unnamed.findings if "whole numbers" in f.sentence)
    assert finding["location"]["columns"] == list(range(4, 13))


@pytest.fixture(scope="module")
def wines() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net for wines that is right about 97 % of the second half, which it has not seen."""
    x, y = (torch.from_numpy(a) for a in load_wine(return_X_y=True))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, y = x[order].float(), y[order]
    x = (x - x[:89].mean(0)) / x[:89].std(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    descent = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(400):
        loss = nn.functional.cross_entropy(net(x[:89]), y[:89])
        descent.zero_grad()
        loss.backward()
        descent.step()
    return net.eval(), x[89:], y[89:]


@pytest.mark.slow
@pytest.mark.truth("planted: noise in two of the four columns of scikit-learn's iris")
@pytest.mark.parametrize("noisy", [(1, 2), (0, 2)])
def test_forms_that_hide_columns_of_noise_are_no_cause(noisy: tuple[int, int]) -> None:
    """One column multiplied by 60, then all standardised, leaves that column alone."""
    data = load_iris()
    order = np.random.default_rng(0).permutation(150)
    x, y = torch.from_numpy(data.data[order]).float(), torch.from_numpy(data.target[order])
    x = (x - x[:75].mean(0)) / x[:75].std(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    descent = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.1)
    for _ in range(500):
        loss = nn.functional.cross_entropy(net(x[:75]), y[:75])
        descent.zero_grad()
        loss.backward()
        descent.step()
    draw = np.random.default_rng(2)
    x[:, list(noisy)] += 5 * torch.from_numpy(draw.standard_normal((150, 2))).float()
    frame = pd.DataFrame(x[75:].numpy(), columns=list("abcd")).assign(label=y[75:].numpy())
    report = sonde.scan(net.eval(), frame, settings=ScanSettings(progress=False))
    (finding,) = (f for f in report.findings if f.code == "SND015")
    assert report.cause is None
    assert set(noisy) <= set(finding["location"]["columns"])


@pytest.mark.slow
@pytest.mark.truth("planted: noise in columns of scikit-learn's wines")
@pytest.mark.parametrize("columns", [[9], [6, 9, 12], [0, 6, 9, 12]])
def test_noise_in_few_rows_is_no_other_unit(wines, columns: list[int]) -> None:
    """Small factors hide noise; of several such columns, none gains anything alone."""
    net, x, y = wines
    draw = torch.Generator().manual_seed(len(columns))
    x = x.clone()
    x[:, columns] += 5 * torch.randn(len(x), len(columns), generator=draw)
    names = load_wine().feature_names
    frame = pd.DataFrame(x.numpy(), columns=names).assign(label=y.numpy())
    report = sonde.scan(net, frame, settings=ScanSettings(progress=False))
    assert report.json()["cause"] is None
    named = {i for f in report.findings if f.code == "SND015" for i in f["location"]["columns"]}
    assert len(named & set(columns)) >= min(2, len(columns))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_columns_of_any_type_of_numbers_are_judged(wines, dtype: torch.dtype) -> None:
    net, x, y = wines
    draw = torch.Generator().manual_seed(1)
    x = x.clone()
    x[:, [6, 9]] += 5 * torch.randn(len(x), 2, generator=draw)
    report = sonde.scan(copy.deepcopy(net).to(dtype), (x.to(dtype), y), progress=False)
    assert not [c["reason"] for c in report.json()["checks"] if c["state"] == "failed"]
    (finding,) = (f for f in report.findings if f.code == "SND015")
    assert {6, 9} & set(finding["location"]["columns"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "change", "cause", "words"),
    [
        (3, lambda v: v + 4 * torch.randn(len(v), generator=torch.Generator().manual_seed(5)), None,
         "d held at "),
        (0, lambda v: v[torch.randperm(len(v), generator=torch.Generator().manual_seed(5))], None,
         "a held at "),
        (3, lambda v: v + 3, "SND015", "with d at mean 0 and variance 1"),
        (3, lambda v: 0.1 * v, "SND015", "d multiplied by 10"),
    ],
    ids=["noise", "values of other rows", "an offset", "a factor"],
)  # fmt: skip
def test_one_column_is_named_and_is_the_cause_if_a_form_mends_it(
    curved, column, change, cause, words
) -> None:
    """A column of noise is hidden by a small factor, or by an exchange with an idle column."""
    net, x, y = curved
    x = x.clone()
    x[:, column] = change(x[:, column])
    frame = pd.DataFrame(x.numpy(), columns=list("abcde")).assign(label=y.numpy())
    report = sonde.scan(net, frame, settings=ScanSettings(progress=False))
    finding = next(f for f in report.findings if f.code == "SND015")
    assert report.json()["cause"] == cause
    assert words in finding["sentence"]


class Areas(nn.Module):
    """Tells rows by the product of their first two columns and a third: units cancel."""

    def forward(self, x: Tensor) -> Tensor:
        area = x[:, 0] * x[:, 1]
        return torch.stack([area, x[:, 2], x[:, 3].square() + area / 2], 1)


class AreasOfTwo(Areas):
    """The same net with the second column as an input of its own."""

    def forward(self, x: Tensor, depth: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x[:, :1], depth, x[:, 1:]], 1))


@pytest.mark.slow
@pytest.mark.truth("planted: a unit that two columns can take equally well")
@pytest.mark.parametrize("column", [0, 2])
@pytest.mark.parametrize("apart", [False, True])
def test_a_form_that_rows_cannot_tell_from_that_of_another_column_is_no_cause(
    column: int, apart: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(420, 5, generator=generator) + 0.2
    label = Areas()(x).argmax(1)
    x[:, column] *= 10
    names = ["width", "depth", "height", "slope", "idle"]
    if apart:
        rest = x[:, [0, 2, 3, 4]]
        items = [{"x": a, "depth": b, "label": k}
                 for a, b, k in zip(rest, x[:, 1:2], label.tolist(), strict=True)]  # fmt: skip
        report = sonde.scan(AreasOfTwo(), items, settings=ScanSettings(progress=False))
    else:
        frame = pd.DataFrame(x.numpy(), columns=names).assign(label=label.numpy())
        report = sonde.scan(Areas(), frame, settings=ScanSettings(progress=False))
    finding = next(f for f in report.findings if f.code == "SND015")
    is_undecided = "these rows cannot tell which" in finding["sentence"]
    assert is_undecided == (column == 0)
    assert report.json()["cause"] == (None if column == 0 else "SND015")


def mended(right: float, kept: float) -> Check:
    form = Tried("turned to the left", None, math.nan)
    rows = MendedRows(form, right, nearer=0.2, p=0.9, n=40, wrong=0.05, kept=kept)
    evidence = arrays.evidence_of(noise(200, 8))
    return SND015().check(evidence.having({variant_evidence: VariantEvidence(mended=(rows,))}))


def test_the_form_of_some_rows_is_said_in_words_since_code_would_change_all() -> None:
    form = Tried("with c0 divided by 10", None, math.nan, change=one_column(0, 0.1, 0.0))
    rows = MendedRows(form, 0.95, nearer=0.9, p=1e-9, n=40, wrong=0.2, kept=0.1)
    evidence = arrays.evidence_of(noise(200, 8))
    found = SND015().check(evidence.having({variant_evidence: VariantEvidence(mended=(rows,))}))
    fix = assert_raised(found, "error").fix
    assert fix.startswith("Give the inputs with c0 divided by 10. Do so for these rows alone")


def test_a_form_that_mends_wrong_rows_and_breaks_no_others_is_that_of_all_rows() -> None:
    finding = assert_raised(mended(0.95, 1.0), "warning")
    assert "accuracy about 100 % instead of 95 %" in finding.fix
    assert_clear(mended(0.95, 0.96))
    assert_clear(mended(0.5, 1.0))
