"""Expected calibration error and Brier score: other code, closed forms, intervals over groups."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss

from sonde.core.errors import InputError
from sonde.metrics import aupr, auroc, brier_score, expected_calibration_error, fpr_at_tpr


def stated(n=4000, seed=0):
    """Return confidences and outcomes that come true exactly as often as they say."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1.0, n)
    return confidence, rng.uniform(size=n) < confidence


@pytest.mark.truth("the definition, one bin after the other, in numpy")
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_expected_calibration_error_by_definition(bins):
    confidence, right = stated(500)
    confidence = np.round(confidence**2, 2)
    want, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        here = (confidence > low + 1e-12) & (confidence <= high + 1e-12)
        if here.any():
            want += here.mean() * abs(right[here].mean() - confidence[here].mean())
    found = expected_calibration_error(confidence, right, bins=bins, resamples=0)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.direction == "lower"


@pytest.mark.truth("200 draws of confidences that hold exactly")
@pytest.mark.parametrize("binning", ["width", "mass"])
def test_the_null_is_what_honest_confidence_gives(binning):
    options = {"binning": binning, "resamples": 0}
    found = [expected_calibration_error(*stated(300, s), **options) for s in range(200)]
    mean, null = (float(np.mean([getattr(f, n) for f in found])) for n in ("value", "null"))
    assert mean == pytest.approx(null, rel=0.05)
    assert null > 0.03  # the error of such confidence is 0


@pytest.mark.truth("sklearn.metrics.brier_score_loss, and the sum of both classes")
def test_brier_score():
    confidence, right = stated(300)
    want = brier_score_loss(right, confidence)
    found = brier_score(confidence, right)
    assert found.value == pytest.approx(want, rel=1e-12)
    both = torch.from_numpy(np.column_stack([1 - confidence, confidence])).float()
    assert brier_score(both, right.astype(int)).value == pytest.approx(2 * want, rel=1e-6)
    assert found.null == pytest.approx(right.mean() * (1 - right.mean()), rel=1e-12)
    assert found.low < found.value < found.high


@pytest.mark.truth("rows that stand eight times are an eighth as many groups")
def test_intervals_are_over_groups():
    confidence, right = stated(50)
    often = np.repeat(confidence, 8), np.repeat(right, 8)
    names = (None, np.repeat(np.arange(50), 8))
    once = float(brier_score(confidence, right).se or 0)
    rows, grouped = (float(brier_score(*often, name).se or 0) for name in names)
    assert grouped == pytest.approx(once, rel=1e-9)
    assert 0 < rows < 0.5 * grouped


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: expected_calibration_error([1.5], [1]), r"in \[0, 1\], got 1.5. Take the softmax"),
        (lambda: expected_calibration_error([0.5], [1], bins=0), "at least 1 bin"),
        (lambda: brier_score([[0.5, 0.4]], [0]), "add to 1 over classes, got a sum off by 0.1"),
        (lambda: brier_score([[0.5, 0.5]], [2]), "a class from 0 to 1 for each of 1 rows"),
        (lambda: brier_score([0.5, 0.5], [1]), "a label for each of 2 rows, got 1"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_a_probability_may_be_above_one_by_rounding_and_a_row_has_one():
    right = [1, 0, 1, 1]
    rounded = expected_calibration_error([1.0000001] * 4, right)
    assert rounded.value == expected_calibration_error([1.0] * 4, right).value
    with pytest.raises(InputError, match=r"in \[0, 1\], got 1\.0001"):
        expected_calibration_error([1.0001] * 4, right)
    with pytest.raises(InputError, match=r"entry of probabilities for each row, got .*\(4, 3\)"):
        expected_calibration_error(torch.full((4, 3), 1 / 3), right)
    for figure in (auroc, fpr_at_tpr, aupr):
        with pytest.raises(InputError, match=r"one entry of labels for each row, got .*\(4, 2\)"):
            figure([0.1, 0.2, 0.3, 0.4], torch.eye(2)[[0, 1, 1, 0]])


@pytest.mark.truth("confidence that holds exactly has no error")
def test_the_interval_contains_its_value():
    found = expected_calibration_error([0.5] * 200, [0, 1] * 100)
    assert found.value == found.low == 0.0 < found.high
