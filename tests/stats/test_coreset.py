import itertools

import pytest
import torch

from sonde.core.errors import InputError
from sonde.stats import Coreset


def _rows(n, dim=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, dtype=torch.float64, generator=generator).to(dtype)
    return x, torch.randint(-(2**62), 2**62, (n,), generator=generator)


def _uncovered(state, x):
    return float(torch.cdist(x.double(), state.rows.double()).amin(1).max())


def _updated(statistic, x, draw, step):
    state = statistic.observe(x[:step], draw[:step])
    for part, place in zip(x[step:].split(step), draw[step:].split(step), strict=True):
        state = (
            statistic.observe(part, place)
            if state is None
            else statistic.update(state, part, place)
        )
    return state


@pytest.mark.truth("the largest distance to a chosen row, over all rows")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radius_of_one_batch_is_the_covering_radius(dtype):
    x, draw = _rows(1500, 5, dtype=dtype)
    state = Coreset(60).observe(x, draw)
    assert state.radius == pytest.approx(_uncovered(state, x), rel=1e-5)
    assert state.rows.shape == (60, 5)


@pytest.mark.truth("every choice of three centres among eleven rows")
def test_at_most_twice_the_best_radius():
    x, draw = _rows(11)
    best = min(
        float(torch.cdist(x, x[list(chosen)]).amin(1).max())
        for chosen in itertools.combinations(range(11), 3)
    )
    assert best <= Coreset(3).observe(x, draw).radius <= 2 * best + 1e-12


@pytest.mark.truth("the farthest row from those chosen, by loops")
def test_farthest_first_from_the_row_of_smallest_draw():
    x, draw = _rows(80, 4)
    chosen = [int(draw.numpy().view("uint64").argmin())]
    while len(chosen) < 12:
        chosen.append(int(torch.cdist(x, x[chosen]).amin(1).argmax()))
    state = Coreset(12).observe(x, draw)
    assert torch.equal(state.rows, x[chosen])
    assert state.draw.tolist() == draw[chosen].tolist()


@pytest.mark.essential
@pytest.mark.truth("the largest distance to a chosen row, over all rows")
def test_updates_cover_and_stay_tight():
    x, draw = _rows(20_000, 3)
    statistic = Coreset(100)
    state = _updated(statistic, x, draw, 700)
    assert state.n == 20_000
    assert _uncovered(state, x) <= state.radius + 1e-9
    chain = statistic.observe(x[:700], draw[:700])
    for part, place in zip(x[700:].split(700), draw[700:].split(700), strict=True):
        chain = statistic.merge(chain, statistic.observe(part, place))
    assert _uncovered(chain, x) <= chain.radius
    assert state.radius < chain.radius
    once = Coreset(100).observe(x[:4096], draw[:4096])
    assert state.radius < 2.5 * once.radius


def test_equal_rows_are_kept_once():
    x, _ = _rows(40)
    state = Coreset(64).observe(x.repeat(100, 1), torch.arange(4000))
    assert len(state.rows) <= 64
    assert state.radius < 1e-6
    assert state.n == 4000


@pytest.mark.truth("the largest distance to a chosen row, over all rows")
def test_rows_that_come_in_order_are_covered_too():
    x, draw = _rows(6000, 8, seed=3)
    x = x[x[:, 0].argsort()]
    state = _updated(Coreset(64), x, draw, 500)
    assert _uncovered(state, x) <= state.radius + 1e-9
    assert state.radius < 1.5 * _uncovered(state, x)


def test_a_far_row_enters_and_a_near_one_does_not():
    x, draw = _rows(500)
    statistic = Coreset(20)
    state = statistic.observe(x, draw)
    same = statistic.update(state, x[:1] + 1e-6, draw[:1] + 1)
    assert torch.equal(same.rows, state.rows)
    assert same.n == 501
    far = torch.full((1, 2), 50.0, dtype=torch.float64)
    assert bool((statistic.update(state, far, draw[:1] + 1).rows == 50.0).all(1).any())


def test_refuses_an_empty_set():
    with pytest.raises(InputError, match="m of at least 1, got 0"):
        Coreset(0)
