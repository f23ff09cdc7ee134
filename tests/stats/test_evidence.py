"""The small sketches that findings read."""

import pytest
import torch

from sonde.core.errors import StateError
from sonde.stats import (
    Extremes,
    GroupMeans,
    HeadWeights,
    NeighbourSums,
    TokenNorms,
    UpdateMoments,
)

GENERATOR = torch.Generator().manual_seed(1)


@pytest.mark.truth("the definition, row by row")
def test_neighbours():
    x = torch.randn(40, 3, generator=GENERATOR)
    order = torch.arange(40)
    shuffle = torch.randperm(40, generator=GENERATOR)
    state = NeighbourSums().observe(
        x[shuffle], order[shuffle], order[shuffle], torch.zeros(40).long(), order[shuffle] // 5
    )
    want = (x[1:] - x[:-1]).double().square().sum(1)
    assert float(state.mean) == pytest.approx(float(want.mean()))
    assert state.pairs[:3].tolist() == [16, 16, 7]
    assert float(state.squares[1]) == pytest.approx(float(want[16:32].sum()))
    assert state.alike[:3].tolist() == [13, 13, 6]


@pytest.mark.truth("1 for exchangeable rows; sorted rows are close to their neighbours")
def test_neighbour_ratio():
    x = torch.randn(1000, 2, generator=GENERATOR)
    order, zero = torch.arange(1000), torch.zeros(1000, dtype=torch.int64)
    double = 2 * float(x.var(0, correction=0).sum())
    state = NeighbourSums().observe(x, order, order, zero, zero)
    assert abs(float(state.mean) / double - 1) < 4 * state.se / double
    near = NeighbourSums().observe(x[x[:, 0].argsort()], order, order, zero, zero)
    assert float(near.mean) / double < 0.6


def test_neighbours_of_one_group_do_not_count():
    order, group, position = torch.tensor([[0, 0, 1, 2], [7, 7, 7, 4], [0, 1, 0, 0]])
    state = NeighbourSums().observe(torch.ones(4, 1), order, group, position, order)
    assert int(state.pairs.sum()) == 1
    assert state.se != state.se


@pytest.mark.truth("mean and variance of y - x")
def test_updates():
    x = 1e3 + torch.randn(50, 4, generator=GENERATOR)
    y = x + 0.01 * torch.randn(50, 4, generator=GENERATOR)
    state = UpdateMoments().merge(
        UpdateMoments().observe(x[:9], y[:9]), UpdateMoments().observe(x[9:], y[9:])
    )
    torch.testing.assert_close(state.mean, (y - x).double().mean(0), rtol=0, atol=1e-9)
    want = (y - x).double().var(0, correction=0)
    torch.testing.assert_close(state.variance, want, rtol=1e-6, atol=1e-12)


@pytest.mark.truth("norms of each bucket")
def test_token_norms():
    x = torch.randn(600, 8, generator=GENERATOR)
    position = torch.arange(600) % 20
    special = position == 7
    x[position == 0] *= 50
    x[special] *= 5
    state = TokenNorms().merge(
        TokenNorms().observe(x[:100], position[:100], special[:100]),
        TokenNorms().observe(x[100:], position[100:], special[100:]),
    )
    norms = x.norm(dim=1).double()
    buckets = [position == 0, special, (position != 0) & ~special]
    assert state.n.tolist() == [30, 30, 540]
    for i, bucket in enumerate(buckets):
        assert float(state.sum[i]) == pytest.approx(float(norms[bucket].sum()), rel=1e-6)
        assert float(state.square[i]) == pytest.approx(
            float(norms[bucket].square().sum()), rel=1e-6
        )
        assert float(state.median[i] / norms[bucket].median()) == pytest.approx(1, abs=0.12)
    assert float(state.median_all / norms.median()) == pytest.approx(1, abs=0.12)
    assert float(state.energy_share[0]) > 0.8


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.truth("float64 norms of the same rows")
def test_norms_whose_squares_do_not_fit_into_float32(scale):
    x = scale * torch.randn(50, 6, generator=GENERATOR)
    position, special = torch.ones(50).long(), torch.zeros(50).bool()
    state = TokenNorms().observe(x, position, special)
    assert float(state.sum[2]) == pytest.approx(float(x.double().norm(dim=1).sum()), rel=1e-12)


def test_empty_bucket_has_no_median():
    state = TokenNorms().observe(torch.ones(2, 1), torch.ones(2).long(), torch.zeros(2).bool())
    assert state.median[0].isnan()
    assert float(state.median[2]) == pytest.approx(1, abs=0.1)


@pytest.mark.truth("sorting all rows")
def test_extremes():
    x = torch.randn(200, 5, generator=GENERATOR)
    x[17, 3], x[150, 1] = -100.0, 90.0
    order, position = torch.arange(200) // 2, torch.arange(200) % 2
    ids = torch.stack([order, order], 1)
    statistic = Extremes(4)
    a, b = (
        statistic.observe(x[s], order[s], position[s], ids[s], torch.arange(200)[s])
        for s in (slice(0, 60), slice(60, 200))
    )
    state = statistic.merge(a, b)
    torch.testing.assert_close(state.largest, x.abs().amax(0).double())
    assert state.value[:2].tolist() == [-100.0, 90.0]
    assert state.unit[:2].tolist() == [3, 1]
    assert (state.order[0], state.position[0]) == (8, 1)
    want = x.abs().amax(1).sort(descending=True).values[:4].double()
    torch.testing.assert_close(state.value.abs(), want)


@pytest.mark.truth("sorting all rows by size, then by draw")
def test_extremes_of_equal_size_are_those_of_smallest_draw():
    x = torch.ones(50, 3)
    x[::2] = -1.0
    zero, draw = torch.zeros(50).long(), torch.randperm(50, generator=GENERATOR)
    state = Extremes(8).observe(x, zero, zero, torch.stack([zero, zero], 1), draw)
    assert state.draw.tolist() == list(range(8))
    signs = x[draw.argsort()[:8], 0].double()
    assert torch.equal(state.value, signs)


@pytest.mark.truth("1 - var(means) / var(rows) for examples of equal length")
def test_group_means():
    x = torch.randn(30, 4, 3, generator=GENERATOR) + 2 * torch.randn(30, 1, 3, generator=GENERATOR)
    rows, order = x.reshape(120, 3), torch.arange(30).repeat_interleave(4)
    statistic = GroupMeans()
    state = statistic.merge(
        statistic.observe(rows[:40], order[:40]), statistic.observe(rows[40:], order[40:])
    )
    want = 1 - x.mean(1).var(0, correction=0) / rows.var(0, correction=0)
    torch.testing.assert_close(state.within_share, want.double(), rtol=1e-5, atol=1e-6)
    assert state.n_examples == 30


@pytest.mark.truth("torch.nn.functional.linear")
def test_head():
    head = torch.nn.Linear(4, 3)
    weight, bias = head.weight.detach(), head.bias.detach()
    state = HeadWeights().observe((weight, bias))
    x = torch.randn(5, 4, generator=GENERATOR)
    torch.testing.assert_close(state.logits(x), head(x).detach())
    assert HeadWeights().merge(state, HeadWeights().observe((weight, bias))) is state
    for other in ((weight + 1e-6, bias), (weight, None), (weight, bias * 2)):
        with pytest.raises(StateError, match="same head on both sides"):
            HeadWeights().merge(state, HeadWeights().observe(other))
