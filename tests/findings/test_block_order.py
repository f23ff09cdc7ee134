"""Exchanged blocks are found by jumps of their weights over depth, before any forward pass."""

import itertools

import pytest
import torch
from torch import nn

import sonde
from sonde.findings.evidence.trials.block_order import pairs_by_jumps
from sonde.findings.evidence.trials.part_changes import REMOVED

BLOCKS = [f"model.layers.{i}" for i in range(7)]


def drifting(n: int = 6, seed: int = 0) -> dict[str, nn.Module]:
    """Return blocks whose weights and gains grow and bend over depth, with noise."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, nn.Module] = {}
    for i in range(n):
        block = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12))
        with torch.no_grad():
            for k, p in enumerate(block.parameters()):
                size = 1 + 0.3 * i + 0.2 * (k % 2) * (i - 2) ** 2
                p.copy_(size * (1 + 0.1 * torch.randn(p.shape, generator=draw)))
        found[f"blocks.{i}"] = block
    return found


@pytest.mark.truth("planted: the two blocks that were exchanged")
@pytest.mark.parametrize("pair", [*itertools.combinations(range(6), 2)][::3])
def test_the_exchange_that_undoes_a_planted_one_comes_first(pair):
    modules = drifting()
    names, (a, b) = list(modules), (f"blocks.{i}" for i in pair)
    healthy = pairs_by_jumps(modules, names)
    assert healthy[0][1] < REMOVED
    assert len(healthy) == 15
    modules[a], modules[b] = modules[b], modules[a]
    (first, removed), *_ = pairs_by_jumps(modules, names)
    assert first == (a, b)
    assert removed > REMOVED


def test_only_blocks_of_equal_shapes_are_compared_and_few_give_no_hope():
    modules = drifting(4)
    modules["blocks.1"] = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12))
    found = pairs_by_jumps(modules, list(modules))
    assert {pair for pair, _ in found} == {
        ("blocks.0", "blocks.2"), ("blocks.0", "blocks.3"), ("blocks.2", "blocks.3"),
    }  # fmt: skip
    assert {removed for _, removed in found} == {0.0}


@pytest.mark.slow
@pytest.mark.truth("planted: each pair of blocks of a trained model in turn")
def test_each_planted_pair_of_a_trained_model_comes_first_and_the_healthy_order_is_left():
    modules = dict(sonde.load("sonde:stdlib").module.named_modules())
    assert pairs_by_jumps(modules, BLOCKS)[0][1] < 0
    for a, b in itertools.combinations(BLOCKS, 2):
        (first, removed), *_ = pairs_by_jumps({**modules, a: modules[b], b: modules[a]}, BLOCKS)
        assert first == (a, b)
        assert removed > REMOVED
