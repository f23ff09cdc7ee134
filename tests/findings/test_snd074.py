import numpy as np
import pytest
import torch

from findings._nets import assert_clear, assert_raised
from findings._tables import HEALTHY, bundled, evidence_with
from sonde.findings.codes.snd074 import SND074
from sonde.findings.rule import Check


def _check(x: np.ndarray, y: np.ndarray, names: list[str] | None = None, **known: object) -> Check:
    return SND074().check(evidence_with(x, names, y, **known))


def _overlapping(n: int = 600) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    draw = np.random.default_rng(4)
    y = draw.integers(0, 3, n)
    return draw.normal(size=(n, 7)) + 0.5 * draw.normal(size=(3, 7))[y], y, draw


@pytest.mark.slow
@pytest.mark.truth("a column of the label with known errors, among columns of classes that overlap")
def test_a_column_that_was_made_from_the_label_is_named_with_its_accuracy() -> None:
    x, y, draw = _overlapping()
    wrong = draw.random(len(y)) < 0.03
    leak = np.where(wrong, (y + 1) % 3, y)
    for column in (leak, leak + draw.normal(0, 0.1, len(y)), np.array([5.0, -2.0, 7.5])[leak]):
        whole = np.column_stack([x, column, 2 * column + draw.normal(0, 1e-6, len(y))])
        finding = assert_raised(_check(whole, y), "warning")
        assert finding.sentence.startswith(("column 7 alone predicts", "column 8 alone predicts"))
        assert finding.figure.value == pytest.approx(1 - wrong.mean(), abs=0.03)
    assert_clear(_check(x, y))
    number = y + draw.normal(0, 0.5, len(y))
    late = np.column_stack([x, number * 3 + draw.normal(0, 0.1, len(y))])
    finding = assert_raised(_check(late, number), "warning")
    assert finding.figure.name == "r2_of_one_column"
    assert finding.figure.value > 0.97


@pytest.mark.truth("the model's own accuracy on the same rows")
def test_a_model_that_is_far_better_than_the_column_keeps_it_clear() -> None:
    x, y, draw = _overlapping(400)
    leak = np.where(draw.random(len(y)) < 0.06, (y + 1) % 3, y)
    whole, facts = np.column_stack([x, leak]), {"labels_are_models": True}
    sure = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(y)).double()
    assert_clear(_check(whole, y, logits=sure, facts=facts))
    unsure = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(leak)).double()
    finding = assert_raised(_check(whole, y, logits=unsure, facts=facts), "warning")
    assert ", the model in 9" in finding.sentence


@pytest.mark.slow
def test_no_column_of_a_healthy_table_is_a_warning() -> None:
    for name in HEALTHY:
        x, y, names = bundled(name)
        found = _check(x, y.astype(float) if name == "diabetes" else y, names).finding
        assert found is None or found.level == "note"
