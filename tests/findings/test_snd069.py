from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sonde
from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, evidence_of
from sonde.findings.codes.snd069 import SND069
from sonde.findings.evidence.facts import by_answers
from sonde.findings.rule import Check
from sonde.findings.settings import ScanSettings
from sonde.report import Report
from sonde.tap import LiveStream

ONLY = ScanSettings(progress=False, only=("SND069",))
TRUE = 3.0


class Scaled(nn.Module):
    """Gives its inputs as logits, times a factor; or their probabilities, softmaxed twice."""

    def __init__(self, factor: float, twice: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.layer.weight)
        self.factor, self.twice = factor, twice

    def forward(self, x: Tensor) -> Tensor:
        z = self.factor * self.layer(x)
        return z.softmax(1).softmax(1) if self.twice else z


def items() -> list[dict[str, Any]]:
    """Return rows whose labels are drawn from probabilities that a net can know exactly."""
    draw = torch.Generator().manual_seed(6)
    x = torch.randn(900, 4, generator=draw)
    label = torch.multinomial((TRUE * x).softmax(1), 1, generator=draw)[:, 0]
    return [{"x": r, "label": int(k)} for r, k in zip(x, label, strict=True)]


def ended(factor: float, twice: bool = False) -> Check:
    stream = sonde.read(Scaled(factor, twice).eval(), items())
    assert isinstance(stream, LiveStream)
    evidence = evidence_of(stream)
    data = by_answers(evidence.data, stream.first_batch().logits)
    return SND069().check(replace(evidence, data=data))


@pytest.mark.slow
@pytest.mark.truth("closed form: labels drawn from the softmax of 3 x, so logits of 9 x need T = 3")
def test_the_temperature_is_that_of_the_labels() -> None:
    report: Report = sonde.scan(Scaled(3 * TRUE).eval(), items(), settings=ONLY)
    off = report.json()["answers"]["sureness"]
    assert off["temperature"] == pytest.approx(3.0, rel=0.2)
    assert off["mended"] < off["error"] / 2
    assert "temperature" in str(report)


def test_a_factor_or_a_second_softmax_is_raised_and_probabilities_that_hold_are_clear() -> None:
    finding = assert_raised(ended(3 * TRUE), "warning")
    assert "overconfident" in finding.sentence
    x = torch.stack([row["x"] for row in items()])
    sure, answer = (3 * TRUE * x).softmax(1).max(1)
    wrong = {i for i, row in enumerate(items()) if row["label"] != answer[i] and sure[i] >= 0.9}
    assert set(finding.examples) == wrong
    assert list(finding.figures) == sorted(finding.figures, reverse=True)
    assert "underconfident" in assert_raised(ended(TRUE, twice=True), "warning").sentence
    assert_clear(ended(TRUE))


def test_small_logits_are_a_note_and_their_probabilities_are_a_warning() -> None:
    assert_raised(ended(TRUE / 20), "note")
    assert_raised(ended(TRUE / 20, twice=True), "warning")


@pytest.mark.truth("labels are drawn apart from the inputs")
def test_a_model_that_is_sure_of_guesses_is_a_warning() -> None:
    draw = torch.Generator().manual_seed(7)
    label = torch.randint(2, (400,), generator=draw)
    x = torch.randn(400, 3, generator=draw, dtype=torch.float64)
    own = {"labels_are_models": True}
    for size, state in ((3.0, "raised"), (0.4, "clear")):
        logits = size * x[:, :2] * torch.tensor([1.0, 0.0])
        check = SND069().check(arrays.evidence_of(x, label=label, logits=logits, facts=own))
        assert check.state == state
    with_task = 3.0 * torch.stack([1.0 - label, label.double()], 1)
    assert (
        SND069().check(arrays.evidence_of(x, label=label, logits=with_task, facts=own)).state
        != "raised"
    )
