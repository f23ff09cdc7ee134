"""Forks of a network: outputs and gradients by hand, copies of late blocks, refused branches."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import Fork


def blocks():
    torch.manual_seed(4)
    return [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(3)]


def heads():
    torch.manual_seed(5)
    return [nn.Linear(5, n).double() for n in (2, 3)]


def states():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.truth("a loop over blocks, and matrix products by the definition")
@torch.no_grad()
def test_each_branch_reads_the_shared_states():
    parts, ends = blocks(), heads()
    fork, x = Fork.cut(parts, 1, ends), states()
    with torch.no_grad():
        fork.branches[1][0][0].weight += 0.3  # the second task's own copy of the second block
    own = [[parts[1], parts[2]], [fork.branches[1][0], parts[2]]]
    for i, y in enumerate(fork(x)):
        wanted = torch.tanh(x @ parts[0][0].weight.T + parts[0][0].bias)
        for block in own[i]:
            wanted = torch.tanh(wanted @ block[0].weight.T + block[0].bias)
        wanted = wanted @ ends[i].weight.T + ends[i].bias
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(fork.answer(x, i), wanted)


@pytest.mark.truth("gradients of the tasks' losses by themselves, added up")
def test_all_tasks_train_the_shared_layers_and_each_its_own_branch():
    fork, x = Fork.cut(blocks(), 2, heads()), states()
    slopes = []
    for task in (0, 1):
        fork.zero_grad()
        fork.answer(x, task).square().sum().backward()
        assert all(p.grad is None for p in fork.branches[1 - task].parameters())
        slopes.append([p.grad.clone() for p in fork.shared.parameters()])
    fork.zero_grad()
    sum(y.square().sum() for y in fork(x)).backward()
    for p, one, two in zip(fork.shared.parameters(), *slopes, strict=True):
        torch.testing.assert_close(p.grad, one + two)


def test_late_blocks_are_copies_and_shared_ones_are_not():
    parts = blocks()
    fork = Fork.cut(parts, 1, heads())
    assert fork.shared[0] is parts[0]
    late = [branch[0][0].weight for branch in fork.branches]
    assert torch.equal(*late)
    assert len({w.data_ptr() for w in (*late, parts[1][0].weight)}) == 3


@pytest.mark.parametrize("n_shared", [0, 3])
@torch.no_grad()
def test_all_or_none_may_be_shared(n_shared):
    parts, ends = blocks(), heads()
    whole = nn.Sequential(*parts)(states())
    for y, head in zip(Fork.cut(parts, n_shared, ends)(states()), ends, strict=True):
        torch.testing.assert_close(y, head(whole))


def test_a_branch_twice_or_too_many_shared_blocks_are_refused():
    branch = nn.Linear(3, 2)
    with pytest.raises(InputError, match="2 branches of 1 modules"):
        Fork(nn.Linear(4, 3), [branch, branch])
    with pytest.raises(InputError, match="0 branches"):
        Fork(nn.Linear(4, 3), [])
    with pytest.raises(InputError, match="to the 3 blocks, got 4"):
        Fork.cut(blocks(), 4, heads())
