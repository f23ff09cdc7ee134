"""Targets of some rows in another form: planted forms are named, tails of errors are not."""

from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from scan._zoo import quiet
from sonde.findings.codes.snd086 import SND086
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_answers import HeadAnswers, Heads
from sonde.findings.rule import Check

FORMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "times 0.001": lambda t: 1000 * t,
    "with the other sign": torch.neg,
    "as exponentials": lambda t: t.abs().log(),
    "as powers of 2": lambda t: t.abs().log2(),
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


def checked(answers: Tensor, truth: Tensor) -> Check:
    """Return the check of a head that gives these answers to rows with these targets."""
    squares, n = (answers - truth).square().mean(1), len(truth)
    head = HeadAnswers(
        name="", column="label", measure="rms_error", right=squares, usual=squares,
        examples=tuple(range(n)), group=torch.arange(n), numbers=(answers, truth),
    )  # fmt: skip
    return SND086().check(evidence_of(torch.randn(30, 4)).having({judge_heads: Heads((head,))}))


@pytest.mark.truth("the planted form and the planted rows")
@pytest.mark.parametrize("words", list(FORMS))
def test_a_planted_form_is_named_with_its_rows(words: str) -> None:
    answers, truth, some = numbers(1, 313)
    is_fitted = words in ("times 0.45", "plus -", "times 3.")
    check = checked(answers, torch.where(some, FORMS[words](truth), truth))
    finding = assert_raised(check, "warning" if is_fitted else "error")
    assert f"with their targets {words}" in finding.sentence
    planted = set(torch.nonzero(some[:, 0])[:, 0].tolist())
    far = set(torch.nonzero((FORMS[words](truth) - truth).abs()[:, 0] > 1.2)[:, 0].tolist())
    assert len(planted & far & set(finding.examples)) > 0.85 * len(planted & far)
    assert len(set(finding.examples) - planted) <= 2
    assert finding.trial is not None
    assert finding.trial.holds


@pytest.mark.truth("the planted form of one number, and the planted exchange of two")
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t[:, [2, 1, 0]], "target = target[:, [2, 1, 0]]"),
        (lambda t: torch.cat([t[:, :1], -t[:, 1:2], t[:, 2:]], 1), "target[:, 1] = -target[:, 1]"),
    ],
)
def test_of_several_numbers_some_are_named(change: Callable[[Tensor], Tensor], line: str) -> None:
    answers, truth, some = numbers(2, 250, 3)
    finding = assert_raised(checked(answers, torch.where(some, change(truth), truth)), "error")
    assert finding.fix.endswith(f": {line}.")


@pytest.mark.truth("the planted rows: the true form is on no list")
def test_a_form_like_the_true_one_is_no_cause() -> None:
    answers, truth, some = numbers(7, 420)
    other = truth.abs().log() + 0.12
    finding = assert_raised(checked(answers, torch.where(some, other, truth)), "warning")
    planted = set(torch.nonzero(some[:, 0])[:, 0].tolist())
    assert len(set(finding.examples) - planted) <= 2
    assert finding.trial is None
    assert "no exact form" in finding.sentence


@pytest.mark.truth("graded errors of one sign: a tail, of which a factor mends the end roughly")
@pytest.mark.parametrize(("n_between", "is_named"), [(0, True), (40, False)])
def test_the_end_of_a_tail_is_no_second_kind_of_rows(n_between: int, is_named: bool) -> None:
    draw = np.random.default_rng(2)
    answers = 2000 * draw.gamma(3, 1, 400) + 3000
    ratio = 1 + 0.05 * draw.normal(size=400)
    ratio[:45] = 1.8 + 0.14 * draw.normal(size=45)
    ratio[45 : 45 + n_between] = 1.25 + 0.35 * draw.random(n_between)
    check = checked(torch.from_numpy(answers)[:, None], torch.from_numpy(answers * ratio)[:, None])
    assert (check.finding is not None) == is_named


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
        assert_clear(checked(torch.from_numpy(y)[:, None], torch.from_numpy(truth)[:, None]))


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
