"""Intervals of metrics hold as often as they say, also from few groups or rare rows."""

from collections.abc import Callable

import pytest
import torch
from tests.narrow import present
from tests.student import student

from sonde.metrics import (
    Metric,
    auroc,
    auroc_within,
    brier_score,
    difference,
    fpr_at_tpr,
    joint_match,
    localisation,
    prediction_rejection,
    roc,
)


def _grouped(n_groups: int, seed: int, n: int = 60) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    group = torch.arange(n) % n_groups
    own = torch.randn(2, n_groups, generator=random, dtype=torch.float64)[:, group]
    truth = (torch.rand(n, generator=random) < 0.5).long()
    noise = torch.randn(n, generator=random, dtype=torch.float64)
    return (1 + 0.7 * own[0]) * truth + 0.5 * own[1] + noise, truth, group


def _held(figure: Callable[[int], Metric], draws: int = 120) -> float:
    """Return how often the interval holds the mean of the values of all draws."""
    found = [figure(seed) for seed in range(draws)]
    mean = sum(float(f.value) for f in found) / draws
    return sum(f.low <= mean <= f.high for f in found) / draws


@pytest.mark.truth("the share of draws whose interval holds the mean of all draws: .95")
@pytest.mark.parametrize("n_groups", [2, 5])
def test_intervals_of_few_groups_hold_the_mean_of_fresh_draws(n_groups: int) -> None:
    def area(seed: int) -> Metric:
        return auroc(*_grouped(n_groups, seed), resamples=200)

    held = _held(area)
    assert held >= 0.86, held  # .55 and .80 without the factor
    found = area(0)
    assert "few_groups" in found.flags
    assert "Student" in found.conventions["se"]


@pytest.mark.truth("the share of draws whose interval holds the mean of all draws: .95")
def test_few_rows_of_one_kind_are_few_groups() -> None:
    def area(seed: int) -> Metric:
        random = torch.Generator().manual_seed(seed)
        truth = torch.arange(120) < 4
        return auroc(torch.randn(120, generator=random) + truth, truth, resamples=200)

    assert _held(area) >= 0.88
    assert area(0).flags == ("few_groups",)
    assert area(0).conventions["independent_groups"] == 4


@pytest.mark.truth("spread of the resamples, with Student's quantile of five groups")
def test_the_error_of_groups_is_students() -> None:
    score, truth, group = _grouped(5, 3)
    found = brier_score(torch.sigmoid(score), truth, group)
    spread = float(present(found.resampled).std()) * (5 / 4) ** 0.5
    assert present(found.se) == pytest.approx(student(5) * spread, rel=1e-9)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * present(found.se), rel=1e-4)


def test_a_difference_is_widened_like_its_sides() -> None:
    score, truth, group = _grouped(5, 4)
    one, two = (auroc(x, truth, group) for x in (score, score.roll(1)))
    gap = difference(one, two)
    few = one.conventions["independent_groups"]
    assert 4 < few <= 5
    spread = float((present(one.resampled) - present(two.resampled)).std())
    want = student(few) * spread * (few / (few - 1)) ** 0.5
    assert present(gap.se) == pytest.approx(want, rel=1e-9)
    assert gap.flags == ("few_groups",)


@pytest.mark.truth("the share of draws whose interval holds the mean of all draws: .95")
def test_a_group_of_most_rows_counts_as_few() -> None:
    def area(seed: int) -> Metric:
        score, truth, group = _grouped(10, seed, 120)
        random = torch.Generator().manual_seed(seed)
        kept = (group == 0) | (torch.rand(120, generator=random) < 0.1)
        return auroc(score[kept], truth[kept], group[kept], resamples=200)

    draws = [seed for seed in range(80) if len(_grouped(10, seed, 120)[1].unique()) == 2]
    assert _held(area, len(draws)) >= 0.9
    assert "few_groups" in area(0).flags


def test_a_single_group_has_no_interval() -> None:
    score, truth, _ = _grouped(5, 5)
    one = torch.zeros(len(score), dtype=torch.int64)
    for found in (auroc(score, truth, one), auroc_within(score, truth, one)):
        assert found.low != found.low
        assert found.se is None
        assert "single group" in found.conventions["se"]
    assert len(roc(score, truth, one).grid) == 0


@pytest.mark.truth("Clopper and Pearson's interval of five of five")
def test_a_fraction_of_all_groups_still_has_a_width() -> None:
    steps, trajectory = torch.tensor([0, 1, 0] * 5), torch.arange(15) // 3
    for found in (
        joint_match(steps, steps, trajectory),
        localisation(steps.double(), steps, trajectory),
    ):
        assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 5)), 1.0)
        assert present(found.se) == pytest.approx((1 - found.low) / 1.959964, rel=1e-4)


def test_too_few_positives_below_a_threshold_are_flagged() -> None:
    random = torch.Generator().manual_seed(6)
    score = torch.randn(200, generator=random)
    few = fpr_at_tpr(score, torch.arange(200) < 40)
    assert "few_rows" in few.flags
    assert "few_rows" not in fpr_at_tpr(score, torch.arange(200) < 40, rate=0.8).flags


@pytest.mark.truth("Student's quantile for four groups over that of none")
def test_few_wrong_answers_are_few_groups() -> None:
    doubt = torch.rand(200, generator=torch.Generator().manual_seed(1))
    n_wrong = {n: (torch.arange(200) >= n).double() for n in (4, 60)}
    found = {n: prediction_rejection(doubt, good) for n, good in n_wrong.items()}
    assert [m.conventions["independent_groups"] for m in found.values()] == [4, 60]
    assert ["few_groups" in m.flags for m in found.values()] == [True, False]
