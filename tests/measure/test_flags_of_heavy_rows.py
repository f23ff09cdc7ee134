"""Values that rest on few rows, on one function of the other side, or on a useless kernel."""

import numpy as np
import pytest
import torch

from sonde.core import InputError
from sonde.engine.tails import contributing_groups, has_long_tails
from sonde.measure import (
    SpuriousShift,
    bottleneck_degree,
    covariance,
    gulp,
    kernel_cka,
    mutual_information,
    participation_ratio,
    regression,
    v_information,
)


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("(sum e^2)^2 / sum e^4 of the sums of groups, by numpy")
def test_the_effective_number_of_groups_is_that_over_their_kurtosis():
    effect, group = drawn(1, 90).pow(3), torch.arange(90) % 23
    sums = np.bincount(group, (effect - effect.mean()).numpy())
    want = np.square(sums).sum() ** 2 / (sums**4).sum()
    assert contributing_groups(effect, group) == pytest.approx(want, rel=1e-9)
    assert contributing_groups(torch.eye(50)[3], torch.arange(50)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.truth("rows of a normal law, and of Student's with three degrees of freedom")
def test_errors_from_few_rows_are_flagged():
    n_flagged = {"normal": 0, "t3": 0}
    for seed in range(20):
        random = np.random.default_rng(seed)
        for law in n_flagged:
            size = (60, 4)
            x, noise = (
                random.standard_normal(size) if law == "normal" else random.standard_t(3, size)
                for _ in "xy"
            )
            n_flagged[law] += "heavy_tails" in regression(x, x[:, ::-1] + noise).flags
    assert n_flagged["normal"] <= 1
    assert n_flagged["t3"] >= 6


@pytest.mark.truth("60 rows of a normal law, and of Student's with three degrees of freedom")
@pytest.mark.parametrize(
    "f", [covariance, lambda x: bottleneck_degree(x, [0] * 60, estimator="mc")], ids=["a", "b"]
)
def test_errors_that_lack_the_rare_rows_are_flagged(f):
    flags: dict[str, list[bool]] = {"normal": [], "t3": []}
    for seed in range(8):
        random = np.random.default_rng(seed)
        rows = {"normal": random.standard_normal((60, 4)), "t3": random.standard_t(3, (60, 4))}
        for law, x in rows.items():
            flags[law].append("heavy_tails" in f(x).flags)
    assert sum(flags["normal"]) <= 1
    assert sum(flags["t3"]) >= 7


@pytest.mark.truth("the variance of a normal sample's fourth moment if units are correlated")
def test_equal_units_say_no_more_of_their_tails_than_one():
    n_long = 0
    for seed in range(60):
        x = drawn(seed, 40, 1)
        assert has_long_tails(x.expand(40, 30), 40) == has_long_tails(x, 40)
        n_long += has_long_tails(drawn(100 + seed, 40, 12), 40)
    assert n_long <= 2
    assert not has_long_tails(torch.ones(40, 3), 40)


@pytest.mark.truth(
    "functions, whose information is infinite, and a normal law of known information"
)
@pytest.mark.parametrize("f", [lambda x: 3 * x + 1, torch.tanh, torch.square], ids=["a", "b", "c"])
def test_information_of_a_function_is_a_lower_bound(f):
    x = drawn(2, 200, 1)
    found = mutual_information(x, f(x), estimator="ksg")
    assert "deterministic" in found.flags
    assert found.se is None
    noisy = mutual_information(x, f(x) + 0.3 * drawn(3, 200, 1), estimator="ksg")
    assert "deterministic" not in noisy.flags
    assert noisy.se is not None


def test_kernels_that_see_no_neighbour_are_flagged():
    x, y = drawn(4, 90, 5), drawn(4, 90, 5) + 0.3 * drawn(5, 90, 5)
    flagged = {s: "narrow_kernel" in kernel_cka(x, y, sigma=s).flags for s in (1e-4, 0.1, 2.0, 1e4)}
    assert flagged == {1e-4: True, 0.1: True, 2.0: False, 1e4: False}


def test_one_huge_row_is_an_answer_with_a_flag():
    x, label = drawn(6, 80, 5), torch.arange(80) % 3
    broken = x.clone()
    broken[3] = 1e30
    found = gulp(broken, x, ridge=1e-3)
    assert np.isnan(float(found))
    assert "lost_precision" in found.flags
    assert np.isfinite(float(gulp(x, x + drawn(7, 80, 5), ridge=1e-3)))
    judged = v_information(broken, label=label)
    assert "heavy_tails" in judged.flags
    assert np.isfinite(judged.null)
    assert "heavy_tails" not in v_information(x, label=label).flags


def test_rows_without_a_concept_are_refused():
    with pytest.raises(InputError, match=r"expected rows with a label .* got none\. Pass label="):
        SpuriousShift().fit(drawn(8, 20, 3), side=torch.arange(20) % 2)


@pytest.mark.truth("rows of another unit")
def test_a_participation_ratio_does_not_depend_on_the_unit():
    x = drawn(9, 50, 6)
    want = float(participation_ratio(x))
    assert float(participation_ratio(x * 1e-120)) == pytest.approx(want, rel=1e-6)
    assert float(participation_ratio(x * 1e-158)) == pytest.approx(want, rel=1e-2)
