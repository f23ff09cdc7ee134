"""Every figure of the first screen of a scan, computed again from what ``--rows`` writes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.findings.document import document
from sonde.findings.row_table import row_table
from sonde.findings.settings import ScanSettings
from sonde.report._answers_words import answers_sentence, confused_sentence, worst_lines
from sonde.report.gate import figure, reached
from sonde.report.scan import run_scan

Lines = Sequence[dict[str, Any]]
SIZES = (130, 70, 11)  # the last class has too few rows for a probe


def scanned_rows(net: nn.Module, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, Any], Lines]:
    """Return the report of a scan, and one line of its table for each row."""
    settings = ScanSettings(progress=False, error_bars=False)
    scanned, name = run_scan(Model(net.eval(), name="net"), (x, y), settings=settings, seed=3)
    lines = {line["row"]: line for line in row_table(scanned).to_pylist()}
    return document(scanned, name), list(lines.values())


def classes() -> tuple[dict[str, Any], Lines]:
    draw = np.random.default_rng(7)
    y = np.repeat(np.arange(3), SIZES)[draw.permutation(sum(SIZES))]
    x = draw.normal(size=(len(y), 5)).astype(np.float32)
    x[np.arange(len(y)), y] += 2.0
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)).requires_grad_(False)
    net[0].weight.copy_(torch.eye(5))
    net[0].bias.zero_()
    net[1].weight.copy_(2 * torch.eye(3, 5))
    net[1].bias.copy_(torch.tensor([0.4, 0.0, -1.0]))
    return scanned_rows(net, x, y)


@pytest.mark.slow
@pytest.mark.truth("the rows that --rows writes, counted by hand")
def test_accuracy_confusions_and_worst_rows_of_a_classifier_are_those_of_its_rows() -> None:
    report, lines = classes()
    found, n = report["answers"], len(lines)
    assert n == sum(SIZES)
    assert Counter(line["truth"] for line in lines) == dict(zip("012", SIZES, strict=True))
    right = [line["truth"] == line["answer"] for line in lines]
    assert right == [line["right"] for line in lines]
    share = sum(right) / n
    assert 0.6 < share < 0.95
    assert found["value"] == pytest.approx(share)
    assert (found["n_rows"], found["commonest"]) == (n, pytest.approx(max(SIZES) / n))
    assert f" of {n} rows" in answers_sentence(report)
    pairs = Counter(
        (line["truth"], line["answer"]) for line in lines if line["truth"] != line["answer"]
    )
    named = {(p["label"], p["predicted"]): p["n"] for p in found["confusion"]["pairs"]}
    assert named
    assert named == {pair: pairs[pair] for pair in named}
    assert min(named.values()) >= max((c for p, c in pairs.items() if p not in named), default=0)
    assert "most often wrong" in confused_sentence(report)
    wrong = sorted((line for line in lines if not line["right"]), key=lambda line: -line["loss"])
    worst = [line["place"] for line in wrong[:10]]
    assert [text.partition(":")[0] for text in worst_lines(report)] == worst
    assert reached(report, f"accuracy<{share - 1e-6:.7f}") is None
    assert reached(report, f"accuracy<{share + 1e-6:.7f}") is not None
    assert figure(report, "loss") == pytest.approx(sum(line["loss"] for line in lines) / n)


@pytest.mark.slow
@pytest.mark.truth("the rows that --rows writes, squared by hand")
def test_the_error_of_a_regression_is_that_of_its_rows() -> None:
    draw = np.random.default_rng(8)
    x = draw.normal(size=(150, 4)).astype(np.float32)
    y = (x[:, 0] - 2 * x[:, 2] + 0.3 * draw.normal(size=150)).astype(np.float32)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1)).requires_grad_(False)
    report, lines = scanned_rows(net, x, y)
    truth, answer = (np.array([float(line[k]) for line in lines]) for k in ("truth", "answer"))
    found = report["answers"]
    assert found["measure"] == "rms_error"
    assert found["value"] == pytest.approx(np.sqrt(np.mean((truth - answer) ** 2)), rel=1e-4)
    assert found["commonest"] == pytest.approx(truth.std(), rel=1e-2)
    assert found["n_rows"] == len(lines) == 150
