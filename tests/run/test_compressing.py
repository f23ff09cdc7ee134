"""What a compression changed inside, how fast it is, what it is fitted on, which setting fits."""

import time

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from sonde import Model
from sonde.compress import RTN, Fidelity
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.run.compressing.choosing import chosen_parts, enough_examples
from sonde.run.compressing.inside import inside
from sonde.run.compressing.settings import Setting, Trial, fitting
from sonde.run.compressing.timing import _median_of_pairs, speeds


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 3)).eval()


@pytest.mark.truth("the rows of both nets, compared in plain torch")
def test_states_are_compared_site_by_site():
    one = net()
    two = RTN(bits=2, group=11).plan(one).fold(one)
    x = torch.randn(60, 11, generator=torch.Generator().manual_seed(1))
    found = {s.site: s for s in inside(Model(one), two, open_inputs(Model(one), x))}
    with torch.no_grad():
        a, b = (m[1](m[0](x)).double() for m in (one, two))
    told = found["1:out"]
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert told.n == 60
    assert told.error == pytest.approx(float((a - b).square().sum() / a.square().sum()), rel=1e-5)
    assert told.cosine == pytest.approx(float(cosine.mean()), rel=1e-5)
    assert told.cosine_5 == pytest.approx(float(cosine.quantile(0.05)), rel=1e-5)
    assert 0 < told.error < 1
    assert told.cka < 1
    same = inside(Model(one), one, open_inputs(Model(one), x))
    assert all(s.error == 0 and s.cka == pytest.approx(1) for s in same)


def test_a_slower_model_is_called_slower():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(50):
                self.inner(x)
            return self.inner(x)

    one = net()
    (found,) = speeds(Model(one), Slow(), open_inputs(Model(one), torch.randn(4, 11)), runs=9)
    assert found.ratio < 0.5
    assert found.ratio_range[0] <= found.ratio <= found.ratio_range[1] < 1
    assert found.before[1] <= found.before[0] <= found.before[2]


def test_runs_of_a_slow_model_are_few(monkeypatch):
    monkeypatch.setattr("sonde.run.compressing.timing.LIMIT_SECONDS", 0.0)
    one = net()
    (found,) = speeds(Model(one), one, open_inputs(Model(one), torch.randn(4, 11)), runs=50)
    assert found.runs == 6
    assert found.ratio_range[0] > 0  # six pairs still bound the ratio


def test_a_clock_of_ticks_is_not_used_for_runs_that_are_shorter(monkeypatch):
    fine = time.process_time
    monkeypatch.setattr(time, "process_time", lambda: fine() // 0.0156 * 0.0156)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = net()
        (found,) = speeds(Model(one), one, open_inputs(Model(one), torch.randn(4, 11)), runs=9)
    finally:
        torch.set_num_threads(threads)
    assert found.clock == "wall"
    assert found.before[1] > 0
    assert 0.05 < found.ratio < 20


@pytest.mark.truth("scipy.stats: exact interval of a median by the binomial law")
def test_the_interval_of_the_median_of_pairs():
    draw = np.random.default_rng(2)
    before, after = draw.random(20) + 0.5, draw.random(20) + 0.5
    ratio, (low, high) = _median_of_pairs([*before], [*after])
    each = before / after
    assert ratio == pytest.approx(np.median(each))
    assert binomtest(int((each <= low).sum()) - 1, 20).pvalue <= 0.05
    assert binomtest(int((each <= low).sum()), 20).pvalue > 0.05
    assert (each >= high).sum() == (each <= low).sum()
    assert _median_of_pairs([1.0] * 5, [2.0] * 5)[1][0] == 0


def test_both_parts_are_drawn_by_ids_and_groups_stay_together():
    model = Model(net())
    x = torch.randn(40, 11, generator=torch.Generator().manual_seed(1))
    parts = chosen_parts(open_inputs(model, x), 20, 10)
    again = chosen_parts(open_inputs(model, x.flip(0)), 20, 10)
    keys = [{*part.listing.keys} for part in parts]
    assert [len(k) for k in keys] == [20, 10]
    assert not keys[0] & keys[1]
    assert keys == [{*part.listing.keys} for part in again]
    rows = {"x": x, "who": [i // 8 for i in range(40)]}
    grouped = open_inputs(model, rows, group_column="who")
    sides = [{*part.listing.group_keys} for part in chosen_parts(grouped, 20, 10)]
    assert not sides[0] & sides[1]
    with pytest.raises(InputError, match="expected at least 2 examples"):
        chosen_parts(open_inputs(model, x[:1]), 1, 1)
    assert enough_examples(model, open_inputs(model, x)) == 88


def trial(setting: Setting) -> Trial:
    kl = 0.5**setting.bits
    plan = RTN(bits=setting.bits).plan(net())
    return Trial(setting, plan, Fidelity(1, kl, kl, kl, kl, 0.0, 0.0, 0.0))


def test_the_smallest_setting_that_fits_is_found():
    settings = [Setting("rtn", bits, 32, 100 * bits) for bits in (2, 3, 4, 5, 6, 7, 8)]
    best, made = fitting(settings, trial, max_kl=0.04)
    assert best.setting.bits == 5
    assert len(made) == 3
    assert fitting(settings, trial, budget=650)[0].setting.bits == 6
    with pytest.raises(InputError, match="the nearest is 2 bits in groups of 32 by rtn with 200"):
        fitting(settings, trial, budget=150)
    with pytest.raises(InputError, match=r"within --budget .*the nearest is 4 bits"):
        fitting(settings, trial, budget=450, max_kl=0.04)
