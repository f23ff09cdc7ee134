import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import StateError
from sonde.layers import ConditionalNorm, DecoupledCrossAttention, UnitGate, conditioned

ROWS, TOKENS, WIDTH = 3, 4, 8


class _Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


def _filled(net):
    torch.manual_seed(3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.eval()


def _net(kind):
    """Return a model with one conditioned layer, and the shape of a condition."""
    if kind == "attention":
        layer = DecoupledCrossAttention(5, n_heads=2, width=WIDTH // 2)
        return _filled(sonde.inserted(_Attends(), {"inner": layer})), (ROWS, 2, 5)
    layers = {
        "norm": lambda: ConditionalNorm(WIDTH, condition=5, norm="none"),
        "gate": lambda: UnitGate(WIDTH, score="conditioned", condition=5),
    }
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2))
    return _filled(sonde.inserted(net, {"0": layers[kind]()})), (ROWS, 5)


KINDS = pytest.mark.parametrize("kind", ["norm", "gate", "attention"])


@KINDS
def test_blocks_of_two_threads_do_not_see_each_other(kind):
    net, shape = _net(kind)
    x, conditions = torch.randn(ROWS, TOKENS, WIDTH), torch.randn(2, *shape)
    both_open = threading.Barrier(2, timeout=30)

    def run(condition, wait):
        with torch.no_grad(), conditioned(net, condition):
            wait()
            out = net(x)
            wait()
        return out

    alone = [run(condition, lambda: None) for condition in conditions]
    assert not torch.allclose(*alone)
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(run, conditions, [both_open.wait] * 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


@KINDS
def test_a_thread_without_a_block_has_the_only_one(kind):
    net, shape = _net(kind)
    x, (first, second) = torch.randn(ROWS, TOKENS, WIDTH), torch.randn(2, *shape)
    with torch.no_grad(), ThreadPoolExecutor(1) as pool, conditioned(net, first):
        expected = net(x)
        assert torch.equal(pool.submit(torch.no_grad()(net), x).result(), expected)
        with ThreadPoolExecutor(1) as other:
            block = conditioned(net, second)
            other.submit(block.__enter__).result()
            assert torch.equal(net(x), expected)
            with pytest.raises(StateError, match="conditioned: expected a block that this thread"):
                pool.submit(net, x).result()
            other.submit(block.__exit__, None, None, None).result()


@KINDS
@pytest.mark.truth("the same model and condition in bfloat16")
def test_a_condition_of_another_precision_takes_that_of_the_model(kind):
    net, shape = _net(kind)
    net, x, condition = (
        net.bfloat16(),
        torch.randn(ROWS, TOKENS, WIDTH).bfloat16(),
        torch.randn(shape),
    )
    with torch.no_grad(), conditioned(net, condition):
        found = net(x)
    with torch.no_grad(), conditioned(net, condition.bfloat16()):
        assert torch.equal(found, net(x))
