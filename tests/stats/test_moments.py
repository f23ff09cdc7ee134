import pytest
import torch

from sine_rows import sine_rows
from sonde.core.hashing import rank_key
from sonde.stats import Calibrated, HashSample, Moments


@pytest.mark.truth("numbers computed with numpy in float64")
def test_eigenvalues_of_sines():
    x, _ = sine_rows()
    statistic = Moments()
    state = statistic.merge(statistic.observe(x[:13]), statistic.observe(x[13:]))
    want = [0.5518871638, 0.5287714794, 0.5278595078, 0.4751995412, 0.4658825126]
    torch.testing.assert_close(
        state.eigenvalues, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.truth("float64 variance without the offset")
def test_offset_in_float32():
    x, _ = sine_rows()
    far = Moments().observe((x + 1e4).float())
    assert float(far.variance[0]) == pytest.approx(0.49848, abs=2e-4)


@pytest.mark.truth("sorting all draws as unsigned numbers")
def test_sample_is_the_smallest_draws():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(-(2**62), 2**62, (500,), generator=generator) * 2 + 1
    x, group = torch.arange(500.0)[:, None], torch.arange(500)
    statistic = HashSample(20)
    a = statistic.observe(x[:77], draw[:77], group[:77], draw[:77])
    state = statistic.update(a, x[77:], draw[77:], group[77:], draw[77:])
    unsigned = [int(d) % 2**64 for d in draw]
    want = sorted(range(500), key=unsigned.__getitem__)[:20]
    assert state.rows[:, 0].int().tolist() == want
    assert state.n == 500
    assert not state.is_everything
    assert bool((rank_key(state.draw).diff() > 0).all())


@pytest.mark.truth("the draws of whole groups")
def test_sample_of_whole_groups():
    group = torch.arange(60) // 6
    group_draw = torch.tensor([9, 3, 5, 1, 8, 2, 7, 6, 4, 0])[group]
    statistic = HashSample(20, groups=True)
    state = statistic.observe(torch.arange(60.0)[:, None], torch.arange(60), group, group_draw)
    whole = state.whole_groups()
    assert state.group[whole].unique().tolist() == [3, 5, 9]
    assert len(whole) == 18


@pytest.mark.truth("sorting the rows of each group by hand")
def test_sample_of_one_row_of_each_group():
    generator = torch.Generator().manual_seed(1)
    draw = torch.randperm(500, generator=generator)
    group = torch.randint(60, (500,), generator=generator) ** 2 // 60
    group_draw = torch.randperm(60, generator=generator)[group]
    statistic, x = HashSample(20, groups="one"), torch.arange(500.0)[:, None]
    state = statistic.observe(x[:99], draw[:99], group[:99], group_draw[:99])
    for part in (slice(99, 150), slice(150, 500)):
        state = statistic.update(state, x[part], draw[part], group[part], group_draw[part])
    first: dict[int, int] = {}
    for i in draw.argsort().tolist():
        first.setdefault(int(group_draw[i]), i)
    assert state.rows[:, 0].int().tolist() == [first[k] for k in sorted(first)[:20]]
    assert state.n == 500


def test_rows_that_come_twice_count_once_in_the_sample():
    x, draw = torch.ones(3, 1), torch.tensor([1, 2, 2])
    state = HashSample(5).observe(x, draw, draw, draw)
    assert len(state.draw) == 2


@pytest.mark.truth("ranks among held-out scores, by hand")
def test_calibrated_detector():
    from contract.broken import Distance

    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    fitted = Calibrated(Distance()).fit(x)
    p = fitted.calibration.p_value(fitted.score(x))
    assert abs(float(p.mean()) - 0.5) < 0.1
    assert float(fitted.calibration.p_value(fitted.score(x + 100)).max()) < 0.02
