"""What a loss keeps between a forward pass and its step belongs to the thread that runs them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from sonde.core.errors import StateError
from sonde.train import Contrast, MaskedFeatures, Mixup, RateReduction

Run = Callable[[Callable[..., Any]], Any]


@pytest.fixture
def threads() -> Iterator[list[Run]]:
    """Yield three threads that stay, as functions that run a call there and return its result."""
    pools = [ThreadPoolExecutor(1) for _ in range(3)]
    yield [lambda call, pool=pool: pool.submit(call).result() for pool in pools]
    for pool in pools:
        pool.shutdown()


def _states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.truth("the mixture by the shares and order of the same thread")
def test_each_thread_has_its_own_mixture(threads: list[Run]) -> None:
    loss, (one, two, three) = Mixup(per="row", seed=3), threads
    x, y = _states(6, 4), _states(6, 4, seed=1)
    mixed = one(lambda: loss.change(x))
    other = two(lambda: loss.change(y))
    assert not torch.equal(one(lambda: loss.order), two(lambda: loss.order))
    for run, given, found in ((one, x, mixed), (two, y, other)):
        share, order = run(lambda: (loss.share, loss.order))
        expected = share[:, None] * given + (1 - share[:, None]) * given[order]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(run(lambda given=given: loss.mixed(given)), expected)
    with pytest.raises(StateError, match="it is not known which call belongs to this loss"):
        three(lambda: loss.mixed(x))


@pytest.mark.truth("the loss under the mask that the same thread's states show")
def test_each_thread_rebuilds_what_it_hid(threads: list[Run]) -> None:
    torch.manual_seed(0)
    loss, (one, two, _) = MaskedFeatures(seed=2), threads
    x, y = _states(3, 8, 4), _states(3, 8, 4, seed=1)
    loss(x)
    loss.empty.data.fill_(7.0)
    masks = [
        run(lambda given=given: (loss.change(given) == 7.0).all(2))
        for run, given in ((one, x), (two, y))
    ]
    assert not torch.equal(*masks)
    for run, given, mask in ((one, x, masks[0]), (two, y, masks[1])):
        expected = loss(given, mask=mask)
        torch.testing.assert_close(run(lambda given=given: loss(given)), expected)


@pytest.mark.truth("second moments summed by hand")
def test_each_thread_steps_with_its_own_rows(threads: list[Run]) -> None:
    loss, (one, two, three) = RateReduction(average=0.5), threads
    label = torch.tensor([0, 1, 0, 1, 1])
    parts = [_states(5, 3, seed=i) for i in range(2)]
    units = [torch.nn.functional.normalize(x, dim=1) for x in parts]
    sums = [torch.stack([u[label == k].T @ u[label == k] for k in (0, 1)]) for u in units]
    one(lambda: loss(parts[0], label))
    two(lambda: loss(parts[1], label))
    one(loss.step)
    torch.testing.assert_close(loss.sums, 0.5 * sums[0])
    two(loss.step)
    torch.testing.assert_close(loss.sums, 0.25 * sums[0] + 0.5 * sums[1])
    one(lambda: loss(parts[0], label))
    two(lambda: loss(parts[1], label))
    three(loss.step)  # for both
    expected = 0.5 * (0.25 * sums[0] + 0.5 * sums[1] + sums[0] + sums[1])
    torch.testing.assert_close(loss.sums, expected)


def test_a_memory_keeps_the_rows_of_each_thread(threads: list[Run]) -> None:
    loss, (one, two, _) = Contrast(memory=20), threads
    one(lambda: loss(_states(4, 3), torch.tensor([0, 0, 1, 1])))
    two(lambda: loss(_states(4, 3, seed=1), torch.tensor([2, 2, 3, 3])))
    one(loss.step)
    assert loss.kept_label.tolist() == [0, 0, 1, 1]
    two(loss.step)
    assert loss.kept_label.tolist() == [2, 2, 3, 3, 0, 0, 1, 1]
    two(loss.step)
    assert len(loss.kept_label) == 8
