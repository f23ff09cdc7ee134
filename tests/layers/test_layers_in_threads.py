"""Layers whose forward pass moves their own state, run by several threads at once."""

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sonde.layers import Attention, StateQueue, UnMixNorm, VectorQuantizer

Run = Callable[[Callable[..., Any]], Any]


def norm_of(width: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, width), torch.full((width,), 0.7)
    return norm


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    made = {
        "groups": Attention(6, 2, "random:0.4"),
        "codes": VectorQuantizer(6, 5, decay=0.7),
        "queue": StateQueue(6, 3, streaming=True),
        "norm": UnMixNorm(norm_of(6), 3),
    }
    for layer in made.values():
        for p in layer.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return {name: layer.double().train() for name, layer in made.items()}


def states(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 6, generator=draw, dtype=torch.float64)


@pytest.fixture
def threads() -> Iterator[list[Run]]:
    """Yield two threads that stay, as functions that run a call there and return its result."""
    pools = [ThreadPoolExecutor(1) for _ in range(2)]
    yield [lambda call, pool=pool: pool.submit(call).result() for pool in pools]
    for pool in pools:
        pool.shutdown()


@pytest.mark.truth("the gradient of the same forward pass without checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", layers())
def test_a_pass_is_recomputed_from_the_state_of_its_thread(name, reentrant, threads):
    layer, x = layers()[name], states().requires_grad_()
    plain, y = copy.deepcopy(layer), states().requires_grad_()
    for each in (layer, plain):
        each(states(1))  # a state that is not the first
    plain(y).sin().sum().backward()
    one, two = threads
    if name == "queue":  # its state is the stream of this thread
        one(lambda: layer(states(1)))
    loss = one(lambda: checkpoint(lambda z: layer(z).sin().sum(), x, use_reentrant=reentrant))
    for _ in range(300 if name == "groups" else 5):  # more than are remembered
        two(partial(layer, states()))
    one(loss.backward)
    torch.testing.assert_close(x.grad, y.grad)


def test_no_two_threads_have_the_same_groups(request):
    layer, interval = layers()["groups"], sys.getswitchinterval()
    request.addfinalizer(partial(sys.setswitchinterval, interval))
    sys.setswitchinterval(1e-6)  # threads take turns often
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: layer(states(seed)), range(250)))
    numbers = [number for kept in layer.earlier._kept.values() for *_, number in kept]
    assert sorted(numbers) == [*range(250)]
    assert int(layer.done) == 250
