"""Settings that meet objectives: by intervals of scipy, and how often a chosen one misses."""

import numpy as np
import pytest
from scipy import stats

from sonde.core import InputError
from sonde.metrics import choose_settings


@pytest.mark.truth("one-sided intervals of scipy.stats, setting by setting")
def test_choice_is_the_cheapest_within_all_bounds():
    draw = np.random.default_rng(1)
    kind = np.repeat([3, 7], [60, 90])
    measured = {
        "quality": draw.normal(np.array([[0.6], [0.75], [0.8], [0.9]]), 0.2, (4, 150)),
        "latency": draw.normal(np.array([[1.0], [1.2], [2.5], [4.0]]), 0.5, (4, 150)),
        "cost": draw.normal(np.array([[1.0], [3.0], [2.0], [6.0]]), 0.3, (4, 150)),
    }
    least, most = {"quality": 0.68}, {"latency": 3.0, "cost": 2.4}
    found = choose_settings(measured, "latency", least, most, kind, sure=0.9)
    level = 1 - 0.1 / (4 * 3)
    for one, choice in found.items():
        own = {name: x[:, kind == one] for name, x in measured.items()}
        n = choice.n
        meets = []
        for i in range(4):
            low = {}
            for name, x in own.items():
                wide = stats.t.interval(2 * level - 1, n - 1, x[i].mean(), stats.sem(x[i]))
                low[name] = wide
            inside = low["quality"][0] >= 0.68
            meets.append(inside and low["latency"][1] <= 3.0 and low["cost"][1] <= 2.4)
        price = [own["latency"][i].mean() if meets[i] else np.inf for i in range(4)]
        assert choice.setting == int(np.argmin(price)) == 2
        assert choice.means["cost"] == pytest.approx(own["cost"][2].mean())
    assert list(found) == [3, 7]


@pytest.mark.truth("how often the bound is missed over 400 draws of settings that all just miss it")
def test_a_chosen_setting_seldom_misses_its_objective():
    draw = np.random.default_rng(2)
    missed = 0
    for _ in range(400):
        quality = draw.normal(0.499, 0.2, (8, 40))
        found = choose_settings({"quality": quality, "cost": 1 - quality}, "cost", {"quality": 0.5})
        missed += found[0].setting is not None
    assert missed / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert missed > 0  # the level is used


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"minimise": "price"}, "expected measurements of 'price', got those of cost"),
        ({"minimise": "cost", "kind": np.arange(3)}, "at least two rows of each kind"),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        choose_settings({"cost": np.ones((2, 3))}, **given)
