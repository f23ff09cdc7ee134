"""Least squares from singular sums of products: one answer, whatever rounding left in them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sonde.compress.decouple_q import best_scales
from sonde.compress.sparse_gpt import refitted
from sonde.detect import SubspaceShift
from sonde.explain import AffineLens
from sonde.explain._dictionary_state import least_squares
from sonde.measure import Regression
from sonde.stats import CrossMoments, Moments, solve_normal_equations
from sonde.weights import Grid

ROUNDING = 1e-14
"""What 10,000 batches leave in a sum."""


def rows_of(seed: int, dim: int = 14, rank: int = 4, n: int = 90) -> tuple[Tensor, Tensor]:
    """Return rows that reach few directions, and rows that follow from them with noise."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=random).double()
    x = x @ torch.randn(rank, dim, generator=random).double() + 2.0
    return x, x[:, :3] ** 2 + torch.randn(n, 3, generator=random).double()


def rounded(sums: Tensor, random: torch.Generator) -> Tensor:
    """Return sums that were rounded otherwise; symmetric ones stay so."""
    noise = torch.randn(sums.shape, generator=random, dtype=sums.dtype)
    if sums.shape[0] == sums.shape[1] and torch.equal(sums, sums.T):
        noise = (noise + noise.T) / 2
    return sums * (1 + ROUNDING * noise)


@pytest.mark.truth("least squares of the rows, each unit at one scale, driver gelsd")
def test_the_solution_is_that_of_the_rows_and_small_units_count():
    x, _ = rows_of(0)
    x, random = x - x.mean(0), torch.Generator().manual_seed(1)
    scale = 10.0 ** torch.linspace(-5, 3, x.shape[1]).double()
    y = torch.randn(len(x), 2, generator=random).double()
    found = solve_normal_equations(rounded((x * scale).T @ (x * scale), random), (x * scale).T @ y)
    size = x.norm(dim=0)
    wanted = torch.linalg.lstsq(x / size, y, driver="gelsd", rcond=1e-7).solution
    torch.testing.assert_close(found * (scale * size)[:, None], wanted, rtol=1e-6, atol=1e-9)
    assert not solve_normal_equations(torch.zeros(3, 3), torch.zeros(3, 2)).any()


def lens(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    own, pair = Moments().observe(x), CrossMoments().observe(x, y)
    own = replace(own, scatter=rounded(own.scatter, random))
    return AffineLens(ridge=0.0).result((own, Moments().observe(y)), pair).weight


def regression(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    own, pair = Moments().observe(x), CrossMoments().observe(x, y)
    own = replace(own, scatter=rounded(own.scatter, random))
    return Regression(ridge=0.0).result(pair, (own, Moments().observe(y))).weight


def dictionary(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    gram = rounded(ones.T @ ones, random)
    return least_squares(torch.cat([gram, ones.T @ y], 1))[0]


def pruning(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    gone = torch.arange(x.shape[1]) % 3 == torch.arange(3)[:, None]
    w = torch.linspace(-1, 2, 3 * x.shape[1]).double().reshape(3, -1).sin()
    return refitted(w, torch.zeros_like(w), gone, rounded(x.T @ x, random))


def scales(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    codes = torch.randint(-4, 4, (3, 16), generator=torch.Generator().manual_seed(2)).double()
    codes[1, 4:] = -3.0
    codes[:, 14:] = 0.0
    w = torch.linspace(-1, 2, 42).double().reshape(3, -1).sin()
    return torch.cat(best_scales(w, rounded(x.T @ x, random), codes, Grid(3, 4)))


@pytest.mark.parametrize("method", [lens, regression, dictionary, pruning, scales])
def test_methods_give_one_answer_however_singular_sums_are_rounded(
    method: Callable[[Tensor, Tensor, torch.Generator], Tensor],
):
    for seed in range(12):
        random = torch.Generator().manual_seed(100 + seed)
        x, y = rows_of(seed)
        one, two = (method(x, y, random) for _ in "ab")
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6 * float(one.abs().max()))


@pytest.mark.truth("the planted number of directions")
def test_the_rank_of_singular_sums_leaves_out_rounding():
    wide: Any = SubspaceShift(rank=50)
    for seed in range(8):
        own = Moments().observe(rows_of(seed)[0])
        own = replace(own, scatter=rounded(own.scatter, torch.Generator().manual_seed(seed)))
        assert wide._rank(own, own) == 4
