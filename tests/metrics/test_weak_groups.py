from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from sonde.core.errors import InputError
from sonde.metrics import WeakGroup, weak_groups
from sonde.metrics._conditions import Nearest


def planted(seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Any], Tensor]:
    """Return errors, style, columns and states; a sensor, short texts and a style are bad."""
    random = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 100, (2000,), generator=random).double()
    old, night = torch.rand(2, 2000, generator=random) < torch.tensor([[0.2], [0.3]])
    states = torch.randn(2000, 24, generator=random)
    style = torch.arange(2000) % 25 == 0
    states[style] += 4 * torch.randn(24, generator=random)
    bad = (old & night) | (length <= 5) | style
    wrong = torch.rand(2000, generator=random) < torch.where(bad, 0.6, 0.03)
    columns = {
        "sensor": ["old" if one else "new" for one in old.tolist()],
        "hour": ["night" if one else "day" for one in night.tolist()],
        "length": length,
    }
    return wrong.double(), style, columns, states


@pytest.mark.truth("scipy's exact binomial interval of the members that were not searched")
def test_a_sensor_at_night_short_texts_and_a_style_are_found_and_counted() -> None:
    wrong, style, columns, states = planted()
    found = weak_groups(wrong, torch.arange(2000), columns, {"a": states})
    told = {group.text: group for group in found}
    assert "sensor = old and hour = night" in told
    assert any(text.startswith("length <=") for text in told)
    cluster = next(group for group in found if group.text.startswith("in cluster"))
    (condition,) = cluster.conditions
    assert isinstance(condition, Nearest)
    again = condition.holds(states)
    assert torch.equal(again, style)
    assert torch.equal(cluster.rows, torch.nonzero(style).flatten())
    for group in found:
        errors = round(group.loss * group.n_confirming)
        exact = binomtest(errors, group.n_confirming).proportion_ci(group.confidence)
        assert (group.low, group.high) == pytest.approx((exact.low, exact.high))
        assert group.confidence >= 1 - 0.01 / 3


def test_the_larger_half_of_the_rows_of_one_sensor_is_told_with_its_number() -> None:
    random = torch.Generator().manual_seed(3)
    size, sensor = torch.randn(2000, generator=random), torch.arange(2000) % 5
    bad = (sensor == 2) & (size > 0.1)
    wrong = torch.rand(2000, generator=random) < torch.where(bad, 0.4, 0.08)
    columns = {"sensor": sensor.tolist(), "size": size.double()}
    (found,) = weak_groups(wrong.double(), torch.arange(2000), columns)
    assert found.text.startswith("sensor = 2 and size >=")
    hits = float(bad[found.rows].double().sum())
    assert hits / len(found.rows) > 0.75
    assert hits / float(bad.sum()) > 0.75


def false_alarms(resamples: int, gap: float = 0.0) -> int:
    """Return in how many orders of the errors, which fall by chance, any group is confirmed."""
    wrong, _, columns, states = planted()
    random = torch.Generator().manual_seed(1)
    found = 0
    for seed in range(resamples):
        mixed = wrong[torch.randperm(2000, generator=random)]
        groups = weak_groups(mixed, torch.arange(2000), columns, {"a": states}, gap=gap, seed=seed)
        found += bool(groups)
    return found


@pytest.mark.slow
def test_errors_that_fall_by_chance_make_no_group() -> None:
    assert false_alarms(10) == 0


def test_losses_have_an_interval_over_groups() -> None:
    wrong, _, columns, _ = planted()
    loss = 2 + 3 * wrong + torch.rand(2000, generator=torch.Generator().manual_seed(2)).double()
    each: list[WeakGroup] = []
    for repeats in (1, 4):
        many = {
            name: v.repeat_interleave(repeats) if isinstance(v, Tensor) else
            [one for one in v for _ in range(repeats)]
            for name, v in columns.items()
        }  # fmt: skip
        group = torch.arange(2000).repeat_interleave(repeats)
        each.append(weak_groups(loss.repeat_interleave(repeats), group, many, gap=0.2)[0])
    assert each[0].text == each[1].text
    assert (each[0].low, each[0].high) == pytest.approx((each[1].low, each[1].high))
    assert each[0].elsewhere < 3 < each[0].low


def test_a_loss_that_is_nan_is_refused() -> None:
    with pytest.raises(InputError, match="expected a finite loss"):
        weak_groups(torch.tensor([1.0, float("nan")]), torch.arange(2))
