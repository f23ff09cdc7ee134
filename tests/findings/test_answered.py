"""Each input with its truth and answer: figures, order, findings, and columns that stand out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import median_abs_deviation, norm

from findings import _evidence as arrays
from sonde.findings.answered import SHOWN, answered_rows, wrong_pairs
from sonde.findings.evidence.shared_rows import EXAMPLES, shared_rows
from sonde.findings.inputs import unusual_columns
from sonde.findings.rule import Check, Figure, Finding


@pytest.fixture(scope="module")
def known():
    draw = torch.Generator().manual_seed(3)
    label = torch.randint(0, 5, (300,), generator=draw)
    label[::7] = -1
    logits = 2 * torch.randn(300, 5, generator=draw) + 3 * torch.eye(5)[label.clamp(min=0)]
    x = torch.randn(300, 4, generator=draw)
    facts = {"labels_are_models": True}
    return arrays.evidence_of(x, label=label, logits=logits, facts=facts), label, logits


@pytest.mark.truth("scipy.special.log_softmax and argmax of the logits")
def test_rows_carry_truth_answer_confidence_and_loss_with_the_worst_first(known) -> None:
    evidence, label, logits = known
    p = log_softmax(logits.double().numpy(), axis=1)
    rows = answered_rows(evidence)
    assert sorted(row[EXAMPLES][0] for row in rows) == list(range(300))
    for row in rows:
        (i,) = row[EXAMPLES]
        truth, answer = int(label[i]), int(p[i].argmax())
        assert row["answer"] == str(answer)
        assert row["confidence"] == pytest.approx(math.exp(p[i].max()), abs=1e-6)
        if truth < 0:
            assert row["truth"] is row["right"] is row["loss"] is None
        else:
            assert row["truth"] == str(truth)
            assert row["right"] is (truth == answer)
            assert row["loss"] == pytest.approx(-p[i, truth], abs=1e-6)
    wrong = [row["loss"] for row in rows if row["right"] is False]
    assert wrong == sorted(wrong, reverse=True)
    assert all(row["right"] is False for row in rows[: len(wrong)])
    pairs = wrong_pairs(rows)
    assert [len(some) for some in pairs] == sorted(map(len, pairs), reverse=True)
    assert len({(row["truth"], row["answer"]) for row in pairs[0]}) == 1


def test_a_finding_names_its_rows_with_its_figures_and_not_those_of_other(known) -> None:
    evidence = known[0]
    a = Finding("SND034", "note", "", Figure("x", 1.0), examples=(7, 3), figures=(0.5, 0.25))
    b = Finding("SND041", "note", "", Figure("x", 1.0), examples=(3,))
    c = Finding("SND052", "note", "", Figure("x", 1.0), examples=(3, 4), of_other=True)
    checks = [Check(f.code, "raised", finding=f) for f in (a, b, c)]
    found = {row[EXAMPLES][0]: row["findings"] for row in answered_rows(evidence, checks)}
    assert found.pop(3) == {"SND034": 0.25, "SND041": None}
    assert found.pop(7) == {"SND034": 0.5}
    assert not any(found.values())


@pytest.mark.truth("the squares of numpy")
def test_a_regression_has_squared_errors_and_no_right_or_wrong() -> None:
    draw = np.random.default_rng(0)
    target = draw.normal(size=120) * 3 - 1
    said = target + draw.normal(size=120)
    evidence = arrays.evidence_of(
        torch.randn(120, 3),
        logits=torch.tensor(said)[:, None],
        facts={"target": torch.tensor(target)},
    )
    assert shared_rows(evidence).order is not None
    rows = answered_rows(evidence)
    order = np.argsort(-((said - target) ** 2))
    assert [row[EXAMPLES][0] for row in rows] == order.tolist()
    assert rows[0]["loss"] == pytest.approx((said - target)[order[0]] ** 2)
    assert rows[0]["right"] is None
    assert len(wrong_pairs(rows)[0]) == SHOWN


@pytest.mark.truth("scipy.stats.median_abs_deviation")
def test_a_row_of_a_table_shows_the_columns_that_are_unusual(known) -> None:
    draw = np.random.default_rng(1)
    table = {name: draw.normal(size=50) for name in ("age", "height", "weight")}
    table["weight"][9] = -80.0
    columns = {name: values.tolist() for name, values in table.items()} | {"note": ["x"] * 50}
    columns["weight"] = [str(value) for value in columns["weight"]]  # as a CSV file gives them

    def key_columns(examples):
        return {name: [values[i] for i in examples] for name, values in columns.items()}

    data = replace(known[0].data, inputs=tuple(columns), key_columns=key_columns)
    first = unusual_columns(data, range(50))[9].split("\n")[0]
    w = table["weight"]
    # 1.4826 is the rounded inverse of the 75 % quantile of a normal, which scipy takes exactly
    z = (w[9] - np.median(w)) / median_abs_deviation(w, scale=float(norm.ppf(0.75)))
    assert first.startswith("weight -80 (z ")
    assert float(first.split("z ")[1][:-1]) == pytest.approx(z, rel=0.05)
