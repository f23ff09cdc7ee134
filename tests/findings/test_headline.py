"""The accuracy of the first screen counts every labelled row, whatever its class and its states."""

import pytest
import torch

from findings._evidence import evidence_of
from sonde.findings.evidence.answer_counts import AnswerCounts
from sonde.findings.evidence.answers.answers import answers_section
from sonde.report._answers_words import answers_sentence
from sonde.report.gate import reached


def answered(sizes, seed=3, noise=1.6):
    """Return rows of unequal classes, their labels, and logits that are often wrong."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    label = label[torch.randperm(len(label), generator=generator)]
    logits = torch.nn.functional.one_hot(label, len(sizes)).double()
    logits = logits + noise * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(len(label), 5, generator=generator) + 2.0 * label[:, None] % 3
    return x, label, logits.float()


def section(x, label, logits):
    facts = {"labels_are_models": True}
    return answers_section(evidence_of(x, label=label, logits=logits, facts=facts))


@pytest.mark.truth("argmax in plain torch over all rows")
@pytest.mark.parametrize("sizes", [(80, 61, 25, 4, 1), (1500, 700, 29), (90, 33)])
def test_every_labelled_row_counts(sizes):
    x, label, logits = answered(sizes)
    label[::11] = -1
    found = section(x, label, logits)
    known = label >= 0
    right = float((logits.argmax(1) == label)[known].double().mean())
    assert (found["value"], found["n_rows"]) == (pytest.approx(right, abs=1e-12), int(known.sum()))
    assert found["low"] < right < found["high"]
    judged = [n for c in range(len(sizes)) if (n := int((label == c).sum())) >= 30]
    assert found.get("n_probed", found["n_rows"]) <= sum(judged)
    said = answers_sentence({"answers": found})
    assert ("of the rows)" in said) == (found.get("n_probed") is not None)
    assert (
        reached({"answers": found}, f"accuracy<{right + 0.0001:.6f}".replace("0.", ".")) is not None
    )
    assert reached({"answers": found}, f"accuracy<{right - 0.0001:.6f}".replace("0.", ".")) is None


@pytest.mark.truth("argmax in plain torch; an answer with NaN or infinity is wrong")
def test_answers_that_are_not_finite_are_wrong_and_counted():
    x, label, logits = answered((70, 45, 31))
    logits[3:23, 1], logits[40:45, 0], x[3:10] = torch.nan, torch.inf, torch.nan
    found = section(x, label, logits)
    right = (logits.nan_to_num(nan=-9e9).argmax(1) == label) & torch.isfinite(logits).all(1)
    assert found["value"] == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert (found["n_rows"], found["n_nonfinite"]) == (146, 25)
    assert found["commonest"] == pytest.approx(70 / 146, abs=1e-6)  # of all rows, as the value is
    assert "25 of them with NaN or infinity in the answer" in answers_sentence({"answers": found})


def test_a_model_that_answers_nan_alone_is_right_on_no_row():
    x, label, logits = answered((40, 35))
    found = section(x * torch.nan, label, logits * torch.nan)
    assert (found["value"], found["n_rows"], found["n_nonfinite"]) == (0.0, 75, 75)
    assert answers_sentence({"answers": found}).startswith("correct on 0 % of 75 rows, 75 of them")


@pytest.mark.truth("comparison with 0 or 0.5 in plain torch")
@pytest.mark.parametrize("is_probability", [False, True])
def test_one_number_for_two_classes(is_probability):
    x, label, logits = answered((1400, 900), noise=0.8)
    given = logits[:, 1:] - 0.5
    given = given.sigmoid() if is_probability else given
    found = section(x, label, given)
    right = (given[:, 0] > (0.5 if is_probability else 0.0)).long() == label
    assert found["value"] == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert found["n_rows"] == 2300


def test_counts_of_parts_add_up():
    _, label, logits = answered((40, 31, 9))
    whole = AnswerCounts().observe(logits, label)
    parts = [AnswerCounts().observe(logits[a:b], label[a:b]) for a, b in ((0, 13), (13, 80))]
    merged = AnswerCounts().merge(*parts)
    assert (merged.n, merged.nonfinite) == (whole.n, whole.nonfinite) == (80, 0)
    assert torch.equal(merged.correct, whole.correct)
