import pytest
import torch

from sonde.core import Stream
from sonde.stats import HashSample
from sonde.stats.sampled_rows import SampledRows


def state_of(statistic, batch, key):
    return statistic.observe(*(batch.column(name, key) for name in statistic.needs()))


def sampled(x, y, m=2048, group=None):
    stream = Stream.of({"x": x, "y": y}, group=group, ids=range(len(x)))
    states = []
    for key in ("x", "y"):
        statistic = HashSample(m)
        parts = [state_of(statistic, b, key) for b in stream]
        states.append(statistic.merge_all(parts))
    return SampledRows.of(states)


def test_rows_line_up_and_broken_ones_are_left_out_everywhere():
    x = torch.arange(100.0)[:, None].repeat(1, 2)
    y = 3 * x[:, :1]
    x[7, 1] = float("nan")
    rows = sampled(x, y, m=60)
    assert len(rows) in (59, 60)
    assert rows.flags == ("sampled",)
    torch.testing.assert_close(rows.rows[1], 3 * rows.rows[0][:, :1])
    assert 7.0 not in rows.rows[0]


@pytest.mark.truth("the standard error of a mean, with groups as units")
@pytest.mark.parametrize("group", [None, torch.arange(400) // 4])
def test_the_error_of_a_mean(group):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=generator)
    x = x if group is None else x[group * 4]
    rows = sampled(x, x, group=group)
    se, _ = rows.standard_error(lambda r: r.rows[0].mean())
    want = float(x.std()) / (400 if group is None else 100) ** 0.5
    exact, _ = rows.error_of_mean(rows.rows[0][:, 0])
    assert se is not None
    assert exact is not None
    assert float(exact) == pytest.approx(want, rel=0.01)
    assert float(se) == pytest.approx(want, rel=0.4)


def test_a_shuffle_moves_whole_groups_and_only_the_last_site():
    group = torch.arange(30).repeat_interleave(torch.tensor([1, 2, 3] * 10))
    x = torch.arange(len(group), dtype=torch.float64)[:, None]
    rows = sampled(x, x, group=group)
    moved = rows.shuffled(n=3)
    assert not torch.equal(moved[0].rows[1], moved[1].rows[1])
    for other in moved:
        assert torch.equal(other.rows[0], rows.rows[0])
        assert sorted(other.rows[1][:, 0].tolist()) == x[:, 0].tolist()
        for one in range(rows.n_groups):
            sources = group[other.rows[1][rows.group == one, 0].long()]
            assert len(set(sources.tolist())) == 1


def test_shuffled_columns_come_from_one_other_group_each_and_are_unlike():
    group = torch.arange(30).repeat_interleave(torch.tensor([1, 2, 3] * 10))
    x = torch.arange(len(group), dtype=torch.float64)[:, None].repeat(1, 2)
    moved = sampled(x, x, group=group).with_shuffled_columns().rows[0]
    rows = sampled(x, x, group=group)
    assert not torch.equal(moved[:, 0], moved[:, 1])
    taken = []
    for one in range(rows.n_groups):
        sources = group[moved[rows.group == one, 0].long()]
        assert len(set(sources.tolist())) == 1
        taken.append(int(sources[0]))
    assert sorted(taken) == list(range(30))
