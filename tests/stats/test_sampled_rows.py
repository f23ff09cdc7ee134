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


def _unlike_groups(generator):
    """Groups of 30 sizes, in random places, whose rows share most of what they say."""
    size = torch.arange(1, 31)
    group = torch.arange(30).repeat_interleave(size)[torch.randperm(465, generator=generator)]

    def draw():
        own = torch.randn(465, 1, generator=generator, dtype=torch.float64)
        return torch.randn(30, 1, generator=generator, dtype=torch.float64)[group] + 0.5 * own

    return group, draw


def _square(rows):
    return float(torch.corrcoef(torch.cat(list(rows.rows), 1).T)[0, 1] ** 2)


@pytest.mark.truth("the mean over independent worlds of the same groups")
def test_groups_that_all_differ_in_size_have_the_null_of_groups():
    generator = torch.Generator().manual_seed(5)
    group, draw = _unlike_groups(generator)
    worlds = [SampledRows((draw(), draw()), group, 465) for _ in range(400)]
    truth = sum(map(_square, worlds)) / len(worlds)
    found = [sum(map(_square, w.shuffled(seed=i, n=8))) / 8 for i, w in enumerate(worlds[:100])]
    assert truth > 8 / 465  # rows one by one would give 1 / 465
    assert sum(found) / len(found) == pytest.approx(truth, rel=0.2)
    x = draw()
    related = SampledRows((x, x.clone()), group, 465)
    null = [_square(other) for other in related.shuffled(n=20)]
    assert max(null) < 0.5
    for other in related.shuffled(n=3):
        for one in range(30):
            sources = group[(other.rows[1][group == one] == x.T).nonzero()[:, 1]]
            assert len(sources.unique()) == 1
            assert int(sources[0]) != one
            assert abs(int(sources[0]) - one) < 12


def test_one_group_of_a_size_of_its_own_moves_too():
    size = torch.tensor([5] + [2] * 20)
    group = torch.arange(21).repeat_interleave(size)
    x = torch.arange(45.0)[:, None]
    moved = SampledRows((x, x), group, 45).shuffled(n=10)
    stays = [torch.equal(other.rows[1][:5], x[:5]) for other in moved]
    assert sum(stays) <= 3
