import math

import pytest
import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd070 import SND070
from sonde.findings.evidence.modules.block_training import (
    BlockTraining,
    compare_blocks,
    less_trained,
)
from sonde.findings.evidence.trials.part_trials import PROBE, PartTrials, part_trials
from sonde.findings.rule import Check

PATHS = tuple(f"layers.{i}" for i in range(6))
GROWING = (0.11, 0.13, 0.12, 0.15, 0.16, 0.19)


def figures(low: set[int], shift: float) -> BlockTraining:
    """Return figures that grow with depth, lower by so much in some blocks."""
    edge = tuple(x - shift * (i in low) for i, x in enumerate(GROWING))
    size = tuple(-2.3 + x - shift * (i in low) for i, x in enumerate(GROWING[::-1]))
    moved = tuple(-3 + 2 * x for x in GROWING)
    return BlockTraining(PATHS, edge, size, moved)


@pytest.mark.parametrize("low", [{2}, {1, 3, 4}, {0, 1, 2, 3, 4}])
def test_blocks_that_two_figures_set_apart_are_named(low: set[int]) -> None:
    assert less_trained(figures(low, 0.4), 2.0) == sorted(low)


def test_figures_that_grow_with_depth_set_no_block_apart() -> None:
    assert less_trained(figures(set(), 0.0), 2.0) == []
    assert less_trained(figures({2}, 0.06), 2.0) == []


def test_one_figure_alone_is_not_enough() -> None:
    alone = figures({2}, 0.4)
    other = figures(set(), 0.0)
    assert less_trained(BlockTraining(PATHS, alone.edge, other.size, other.moved), 2.0) == []


def ended(blocks: BlockTraining, suffers: bool) -> Check:
    nothing = torch.ones(20)
    tried = PartTrials(None, nothing, nothing, 1.0, math.nan, math.nan, 1.0, "nats", False, 90)
    evidence = arrays.evidence_of(torch.randn(40, 3))
    parts = tried if suffers else PROBE
    return SND070().check(evidence.having({compare_blocks: blocks, part_trials: parts}))


def test_blocks_are_named_only_where_answers_suffer() -> None:
    apart = figures({1, 3}, 0.4)
    finding = assert_raised(ended(apart, True), "warning")
    assert finding.sites == ("layers.1", "layers.3")
    assert_clear(ended(apart, False))
    assert_clear(ended(figures(set(), 0.0), True))
