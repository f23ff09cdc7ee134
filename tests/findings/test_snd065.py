from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._nets import assert_clear, assert_raised, evidence_of, noise, tensors
from sonde.findings.codes.snd065 import SND065
from sonde.findings.evidence.inputs.shortcuts import Shortcut, ShortcutEvidence, shortcut_evidence
from sonde.findings.rule import Check
from sonde.findings.settings import ScanSettings
from sonde.report import Report

ONLY = ScanSettings(progress=False, only=("SND065",))
LABEL = torch.arange(480) % 3 == 0


def head(at: Tensor) -> nn.Linear:
    """Return a layer that says one where the mean of some numbers is above one half."""
    layer = nn.Linear(len(at), 2)
    layer.weight = nn.Parameter(torch.stack([-at, at]).float() / at.sum())
    layer.bias = nn.Parameter(torch.tensor([0.5, -0.5]))
    return layer


def reads(top: int, left: int) -> nn.Module:
    """Return a net that looks at nine pixels."""
    at = torch.zeros(16, 16)
    at[top : top + 3, left : left + 3] = 1
    return nn.Sequential(nn.Flatten(), head(at.flatten()))


class Spots(nn.Module):
    """Says one where a text holds the last of twenty tokens, or where it begins with a low one."""

    def __init__(self, by_token: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(20))
        self.by_token, self.head = by_token, head(torch.ones(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        held = self.embedding(input_ids)
        said = held[..., 19].amax(1) if self.by_token else held[:, 0, :10].sum(1)
        return self.head(said[:, None])


def scanned(net: nn.Module, inputs: Any, name: str = "x") -> Report:
    items = [{name: x, "label": int(k)} for x, k in zip(inputs, LABEL, strict=True)]
    return sonde.scan(net.eval(), items, settings=ONLY)


def state(report: Report) -> tuple[str, str]:
    (check,) = report.json()["checks"]
    return check["state"], check["reason"] or ""


def marked() -> Tensor:
    x = 0.2 * noise(480, 256).view(-1, 1, 16, 16)
    x[LABEL, :, 1:4, 12:15] = 1.0
    x[LABEL, :, 8:11, 2:5] += 1.0
    return x


@pytest.mark.slow
def test_a_mark_in_the_corner_is_named_and_its_price_measured() -> None:
    (found,) = scanned(reads(1, 12), marked()).findings
    assert found["level"] == "warning"
    assert "columns 12 to 15 of the image alone marks 100 % of '1' and 0 %" in found["sentence"]
    assert "on 0 % of 80 marked rows (100 % with another example's part)" in found["sentence"]
    assert found["figure"]["value"] == 1.0
    assert found["classes"] == ["1"]


@pytest.mark.slow
def test_a_mark_that_the_model_does_not_look_at_is_not_accused() -> None:
    x = marked()
    x[:, :, 8:11, 2:5] = x[:, :, 8:11, 2:5].mean((1, 2, 3), keepdim=True)
    report = scanned(reads(8, 2), x)
    assert not any("columns 12 to 15" in f["sentence"] for f in report.findings)
    x[:, :, 1:4, 12:15] = 1.0
    x[:, :, 8:11, 2:5] = noise(480, 9).view(-1, 1, 3, 3)
    assert state(scanned(reads(8, 2), x)) == ("clear", "")


def texts() -> list[list[int]]:
    draw = np.random.default_rng(0)
    found = []
    for one in LABEL.tolist():
        text = draw.integers(0, 19, draw.integers(6, 12))
        text[0] = draw.integers(0, 10) if one else draw.integers(10, 19)
        if one:
            text[draw.integers(1, len(text))] = 19
        found.append(text.tolist())
    return found


@pytest.mark.slow
def test_a_token_is_found_where_the_model_needs_it() -> None:
    (found,) = scanned(Spots(True), texts(), "input_ids").findings
    assert found["level"] == "warning"
    assert "Token '19' alone marks 100 % of '1'" in found["sentence"]
    assert state(scanned(Spots(False), texts(), "input_ids")) == ("clear", "")


class Phrase(nn.Module):
    """Says one where a text holds any two of three tokens, or where it begins with a low one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(23))
        self.head = head(torch.ones(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        held = self.embedding(input_ids)
        said = (held[..., 20:].amax(1).sum(-1) > 1).float()
        return self.head(torch.maximum(said, held[:, 0, :3].sum(1))[:, None])


@pytest.mark.slow
def test_a_phrase_in_most_texts_of_a_class_is_replaced_as_a_whole() -> None:
    draw, given = np.random.default_rng(1), texts()
    for text, one in zip(given, LABEL.tolist(), strict=True):
        text[:] = [t % 19 for t in text]
        if one and draw.random() < 0.8:
            text[3:3] = [20, 21, 22]
        elif draw.random() < 0.04:
            text[2:2] = [int(draw.integers(20, 23))]
    (found,) = scanned(Phrase(), given, "input_ids").findings
    assert found["level"] == "warning"
    assert 0.7 < found["figure"]["value"] <= 1
    plain = [[t for t in text if t < 20] for text in given]
    assert state(scanned(Phrase(), plain, "input_ids"))[0] == "clear"


@pytest.mark.slow
def test_a_mark_in_half_the_pictures_of_a_class_is_a_note() -> None:
    x, some = marked(), torch.arange(480) % 2 == 0
    x[some & LABEL, :, 1:4, 12:15] = 0.2 * noise(80, 9).view(-1, 1, 3, 3)
    (found,) = scanned(reads(1, 12), x).findings
    assert found["level"] == "note"
    assert "correct on 0 % of 39 marked rows" in found["sentence"]


@pytest.mark.slow
def test_a_noisy_mark_that_turns_rows_of_other_classes_into_its_own_is_a_warning() -> None:
    x = marked()
    x[LABEL, :, 1:4, 12:15] = 0.9 + 0.15 * noise(160, 9).view(-1, 1, 3, 3)
    (found,) = scanned(reads(1, 12), x).findings
    assert found["level"] == "warning"
    assert "pasted into others, this part makes 100 % '1'." in found["sentence"]


def judged(**changed: Any) -> Check:
    """Return how the rule ends on a mark that costs 30 points, described otherwise."""
    mark = Shortcut(1, "1", "a corner", 0.9, 0.0, 0.01, 0.98, 0.68, 0.2, 0.4, 80, (0, 1))
    tried = ShortcutEvidence((replace(mark, **changed),), 49, 240, "place")
    rows = tensors(nn.Sequential(nn.Linear(4, 2)).eval(), noise(8, 4))
    return SND065().check(evidence_of(rows).having({shortcut_evidence: tried}))


def test_the_level_goes_by_the_drop_and_by_how_constant_the_part_is() -> None:
    assert_raised(judged(), "warning")
    assert_raised(judged(spread=0.1, marked=0.97), "note")
    assert_raised(judged(spread=0.1, marked=0.97, carried=0.92), "warning")
    assert_raised(judged(spread=0.1, marked=0.97, carried=0.4), "note")
    assert assert_raised(judged(low=0.05), "note").borderline
    assert assert_clear(judged(right=0.95)).value == pytest.approx(0.03)
    assert_raised(judged(marked=0.4), "note")
    assert_clear(judged(elsewhere=0.05))
    assert_clear(judged(spread=0.1))
    assert_clear(judged(low=-0.01))


@pytest.mark.slow
def test_what_cannot_be_exchanged_is_said() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    ended, reason = state(scanned(net, noise(480, 60).view(-1, 5, 12)))
    assert ended == "not_applicable"
    assert "neither images of one size, nor texts, nor rows of a table" in reason
