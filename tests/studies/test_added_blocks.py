"""Nets that grow by a block at a time: what is trained, and what an added block changes."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde_studies._added_blocks import (
    DEPTH,
    PIXELS,
    TURN,
    Deep,
    at_once,
    one_alone,
    one_by_one,
    without_each,
)


def _rows():
    return torch.rand(6, PIXELS, generator=torch.Generator().manual_seed(1))


def test_an_added_block_changes_no_answer_before_it_is_trained():
    x = _rows()
    nets = list(one_by_one(lambda net, *_: net, 3, 0, x))
    assert [len(net.blocks) for net in nets] == [1, 2, DEPTH]
    for net in nets[1:]:
        torch.testing.assert_close(net(x), nets[0](x))


@pytest.mark.truth("weights before and after a step of plain gradient descent")
def test_only_the_new_block_and_the_head_are_trained():
    x, turns = _rows(), list[tuple[int, int]]()

    def train(net: nn.Module, steps: int, part: int) -> nn.Module:
        turns.append((steps, part))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        moving = [p for p in net.parameters() if p.requires_grad]
        net(x).square().mean().backward()
        torch.optim.SGD(moving, 1.0).step()
        moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
        last = f"blocks.{len(net.blocks) - 1}."
        assert {n for n in before if n.startswith((last, "head."))} >= moved > {"head.weight"}
        return net

    list(one_by_one(train, 9, 0, x))
    assert [steps for steps, _ in turns] == [3, 3, 3]
    assert len({part for _, part in turns}) == DEPTH


def test_all_blocks_at_once_stand_on_a_frozen_embedding():
    net = at_once(lambda net, *_: net, 5, 0)
    assert isinstance(net, Deep)
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"first.weight", "first.bias"}


def test_without_a_block_the_net_before_it_is_trained_as_long():
    x, seen = _rows(), list[tuple[int, int, int]]()

    def train(net: Any, steps: int, part: int) -> nn.Module:
        seen.append((len(net.blocks), steps, part))
        assert [p.requires_grad for p in net.blocks[-1].parameters()].count(True) == 6
        with torch.no_grad():
            net.head.bias += 1.0
        return net

    nets = list(without_each(train, 9, 0, x))
    assert [len(net.blocks) for net in nets] == [1, 2]
    turns = [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]  # blocks, and which turn's batches
    assert seen == [(n, 3, TURN + turn) for n, turn in turns]
    seen.clear()
    one = one_alone(train, 9, 0, x)
    assert seen == [(1, 3, TURN + turn) for turn in (1, 2, 3)]
    told = list(one_by_one(train, 9, 0, x))
    torch.testing.assert_close(one(x), told[-1](x))  # both were moved three times
    torch.testing.assert_close(nets[0](x) + 1.0, nets[1](x))
