"""Errors from few groups hold as often as they say, in every method that makes them."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from tests.narrow import present
from tests.student import student

from sonde import explain, measure
from sonde.core.few_groups import student_factor, widen_error
from sonde.engine.errorbars import group_error
from sonde.run.changing.judge import difference
from sonde.run.comparing.two_answers import summary
from sonde_studies.parts.choice import balanced
from sonde_studies.parts.figures import error_of, resampled_error


@pytest.mark.truth("quantiles of scipy.stats; the factor ends where it is below 1.05")
def test_the_factor_is_students_quantile_over_the_normal_one() -> None:
    for n in range(2, 32):
        assert student_factor(n) == pytest.approx(student(n), rel=1e-9)
    assert student_factor(31) > 1.04
    assert {student_factor(n) for n in (0, 1, 32, 10_000)} == {1.0}
    assert widen_error(None, 3) is None
    assert widen_error(torch.ones(2), 2).tolist() == pytest.approx([12.7062047 / 1.95996398] * 2)


@pytest.mark.truth("the share of draws whose interval holds the mean 0 of a normal law: .95")
@pytest.mark.parametrize("n_groups", [2, 3, 5, 10])
def test_the_interval_of_a_mean_over_few_groups_holds_it_in_95_of_100(n_groups: int) -> None:
    random = torch.Generator().manual_seed(n_groups)
    group = torch.arange(40) % n_groups
    holds = without = 0
    for _ in range(1000):
        own = torch.randn(n_groups, generator=random, dtype=torch.float64)
        x = own[group] + torch.randn(40, generator=random, dtype=torch.float64)
        reach = 1.959964 * group_error(x / 40, group, n_groups)
        holds += abs(float(x.mean())) <= reach
        without += abs(float(x.mean())) <= reach / student_factor(n_groups)
    assert 0.93 <= holds / 1000 <= 0.97
    assert without < holds


@pytest.mark.truth("the share of draws whose interval holds the mean 0 of a normal law: .95")
@pytest.mark.parametrize(
    "sizes", [[120, *[9] * 9], [180, *[1] * 12], [70, 70, *[6] * 10], [150, 50]], ids=str
)
def test_the_interval_of_a_mean_over_uneven_groups_holds_it(sizes: list[int]) -> None:
    random = torch.Generator().manual_seed(3)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    holds = 0
    for _ in range(400):
        x = torch.randn(len(sizes), generator=random, dtype=torch.float64)[group]
        reach = 1.959964 * group_error(x / len(x), group, len(sizes))
        holds += abs(float(x.mean())) <= reach
    assert holds / 400 >= 0.9  # .70, .04, .76 and .93 where sizes are ignored


def _said(n_groups: int) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Return error and flags of methods that make their errors in different ways."""
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(240, 4, generator=random, dtype=torch.float64) for _ in "xy")
    label, group = torch.arange(240) // 3 % 2, torch.arange(240) % n_groups
    found = {
        "influence": measure.anisotropy(x, group=group),
        "pairs": measure.cka(x, y, group=group),
        "halves": measure.effective_rank(x, source="sample", group=group),
        "held out": explain.Probe().fit(x, label=label, group=group),
        "code length": explain.MdlProbe().fit(x, label=label, group=group),
    }
    return {name: (present(r.se), r.flags) for name, r in found.items()}


def test_errors_of_fewer_than_8_groups_are_flagged_however_they_are_made() -> None:
    few, more = _said(6), _said(8)
    assert {name for name, (_, flags) in few.items() if "few_groups" in flags} == {*few}
    assert not any("few_groups" in flags for _, flags in more.values())


def test_one_group_of_most_rows_is_few_groups_however_errors_are_made() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(240, 4, generator=random, dtype=torch.float64) for _ in "xy")
    label, group = torch.arange(240) // 3 % 2, (torch.arange(240) - 199).clamp(min=0)
    for found in (
        measure.anisotropy(x, group=group),
        measure.cka(x, y, group=group),
        explain.Probe().fit(x, label=label, group=group),
        explain.MdlProbe().fit(x, label=label, group=group),
    ):
        assert "few_groups" in found.flags


@pytest.mark.truth("Student's quantile for the groups over that of none, error by error")
def test_every_way_to_make_an_error_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = _said(6)
    monkeypatch.setattr("sonde.core.few_groups.student_factor", lambda _: 1.0)
    narrow = _said(6)
    for name, (error, _) in wide.items():
        assert error / narrow[name][0] == pytest.approx(student(6)), name


@pytest.mark.truth("numpy's variance of group means, with Student's quantile of the groups")
def test_errors_of_reports_and_recipes_are_students() -> None:
    own = torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    group = torch.arange(40) % 5
    want = student(5) * float(own.std()) / 5**0.5
    keys = [bytes([g]) for g in group.tolist()]
    found = {
        "edit": difference(own[group], keys).se,
        "compare": summary(own[group][:, None].expand(-1, 7), keys).same_se,
        "recipe": error_of(own.numpy()),
        "recipe, groups": error_of(own[group].numpy(), group.numpy()),
    }
    assert found == {name: pytest.approx(want, rel=1e-9) for name in found}
    assert resampled_error(own, 0) == pytest.approx(want, rel=0.1)
    assert error_of(own[:1].numpy()) == resampled_error(own[:1], 0) == float("inf")


@pytest.mark.truth("Welch's degrees of freedom by scipy.stats")
def test_classes_of_few_rows_widen_a_balanced_accuracy() -> None:
    right, label = np.array([1, 0, 1, 1, 0, 0, 1]) > 0, np.array([0, 0, 0, 0, 1, 1, 1])
    one, two = (right[label == c] * 1.0 for c in (0, 1))
    signed = ttest_ind(one, two, equal_var=False)
    low, high = signed.confidence_interval(0.95)
    value, error = balanced(right, label)
    assert value == pytest.approx((0.75 + 1 / 3) / 2)
    assert 1.959964 * error == pytest.approx((high - low) / 4, rel=1e-4)
