"""Targets of some rows in another form: planted forms are named, tails of errors are not."""

from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sonde
from scan._zoo import quiet
from sonde.findings.codes.snd086 import SND086
from sonde.findings.evidence.answers.restored_targets import RestoredTargets, restored

FORMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "times 0.001": lambda t: 1000 * t,
    "with the other sign": torch.neg,
    "as exponentials": lambda t: t.abs().log(),
    "as logarithms": torch.exp,
    "times 0.45": lambda t: 2.2046 * t,
    "plus -": lambda t: t + 30,
    "times 3.": lambda t: (t - 6.5) / 3.5,
}


def numbers(seed: int, n: int, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return skewed answers, their targets, and which rows are of another source."""
    draw = np.random.default_rng(seed)
    answers = 2 * draw.gamma(3, 1, (n, k)) + 0.5
    truth = answers + 0.4 * draw.normal(size=(n, k))
    some = draw.random((n, 1)) < 0.3
    return torch.from_numpy(answers), torch.from_numpy(truth), torch.from_numpy(some)


def is_raised(found: RestoredTargets | str | None) -> bool:
    rule = SND086()
    return (
        isinstance(found, RestoredTargets)
        and found.mended >= max(rule.most, found.chance + rule.above)
        and found.p < rule.level
    )


@pytest.mark.truth("the planted form and the planted rows")
@pytest.mark.parametrize("words", list(FORMS))
def test_a_planted_form_is_named_with_its_rows(words: str) -> None:
    answers, truth, some = numbers(1, 313)
    given, rows = torch.where(some, FORMS[words](truth), truth), torch.arange(len(some))
    found = restored(answers, given, rows, rows)
    assert isinstance(found, RestoredTargets)
    assert is_raised(found)
    assert found.form.words.startswith(words)
    planted = set(rows[some[:, 0]].tolist())
    assert len(planted & set(found.rows)) > 0.85 * len(planted)
    assert len(set(found.rows) - planted) <= 2
    assert found.trial.holds


@pytest.mark.truth("the planted form of one number, and the planted exchange of two")
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t[:, [2, 1, 0]], "y = y[:, [2, 1, 0]]"),
        (lambda t: torch.cat([t[:, :1], -t[:, 1:2], t[:, 2:]], 1), "y[:, 1] = -y[:, 1]"),
    ],
)
def test_of_several_numbers_some_are_named(change: Callable[[Tensor], Tensor], line: str) -> None:
    answers, truth, some = numbers(2, 250, 3)
    rows = torch.arange(len(some))
    found = restored(answers, torch.where(some, change(truth), truth), rows, rows)
    assert isinstance(found, RestoredTargets)
    assert is_raised(found)
    assert found.form.line == line


NOISES: Final[dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]]] = {
    "t3": lambda draw, y: draw.standard_t(3, len(y)),
    "exponential": lambda draw, y: draw.exponential(0.6, len(y)),
    "relative": lambda draw, y: y * np.expm1(0.3 * draw.normal(size=len(y))),
    "relative, of one sign": lambda draw, y: 0.2 * y * draw.exponential(size=len(y)),
    "Pareto": lambda draw, y: 0.4 * draw.pareto(1.5, len(y)),
    "Cauchy": lambda draw, y: 0.3 * draw.standard_cauchy(len(y)),
}


@pytest.mark.truth("errors without a second source")
@pytest.mark.parametrize("noise", list(NOISES))
def test_tails_of_errors_are_no_form(noise: str) -> None:
    for seed in range(8):
        draw = np.random.default_rng(seed)
        y = 2 * draw.gamma(3, 1, 150 + 60 * seed) + 0.5
        truth = y + NOISES[noise](draw, y)
        rows = torch.arange(len(y))
        found = restored(*(torch.from_numpy(x)[:, None] for x in (y, truth)), rows, rows)
        assert not is_raised(found), seed


@pytest.mark.slow
@pytest.mark.truth("the planted rows of several numbers")
def test_a_model_of_several_numbers_is_scanned() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4).requires_grad_(False).eval()
    x = torch.randn(240, 6)
    y = net(x) + 0.05 * torch.randn(240, 4)
    some = torch.arange(240) % 4 == 1
    y[some] = y[some].exp()
    rows = {"x": x, "label": y, "id": [str(i) for i in range(240)]}
    report = sonde.scan(net, rows, settings=quiet(only=("SND086",)))
    finding = report.json()["findings"][0]
    assert finding["code"] == "SND086"
    assert set(finding["rows"]) <= {str(i) for i in torch.nonzero(some)[:, 0].tolist()}
    assert "as logarithms" in finding["sentence"]
