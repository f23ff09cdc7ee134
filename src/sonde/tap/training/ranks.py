"""Rows of all processes in a training run, for losses that depend on all rows together."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed

P = ParamSpec("P")
L = TypeVar("L")
T = TypeVar("T")
_DONE: ContextVar[bool] = ContextVar("rows of all processes are gathered", default=False)


def n_ranks() -> int:
    """Return how many processes train together."""
    is_on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_on else 1


def rank() -> int:
    """Return the number of this process among those that train together."""
    return distributed.get_rank() if n_ranks() > 1 else 0


def rows_by_rank(n: int, device: torch.device) -> list[int]:
    """Return how many rows each process holds; ``n`` is the number on this process."""
    sizes = torch.zeros(n_ranks(), dtype=torch.int64, device=device)
    sizes[rank()] = n
    return added_up(sizes).tolist()


def gathered(x: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks.

    Gradients go to the rows of this process, times the number of processes: the mean of the
    gradients over processes, which data-parallel training takes, is then that of one process with
    all rows. Processes may hold different numbers of rows.
    """
    sizes = rows_by_rank(len(x), x.device)
    most = max(sizes)
    own = x.detach().new_zeros(most, *x.shape[1:])
    own[: len(x)] = x.detach()
    parts = [torch.empty_like(own) for _ in range(n_ranks())]
    distributed.all_gather(parts, own.contiguous())
    kept = [part[:n] for part, n in zip(parts, sizes, strict=True)]
    beyond = x - x.detach()  # zeros that carry the gradient
    kept[distributed.get_rank()] = x + (n_ranks() - 1) * beyond if x.requires_grad else x
    return torch.cat(kept)


def gathered_views(x: Any, views: Sequence[int]) -> Any:
    """Return the rows of all processes, grouped by view; other values are unchanged.

    Parameters
    ----------
    x : Tensor or object
        A row for each example of every view, or of the first view alone.
    views : sequence of int
        Rows of each view on this process.
    """
    if not isinstance(x, Tensor) or not x.ndim or len(x) not in (sum(views), views[0]):
        return x
    parts = [x] if len(x) == views[0] else x.split(list(views))
    return torch.cat([gathered(part) for part in parts])


def added_up(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, or the tensor itself for one process."""
    if n_ranks() == 1:
        return x
    total = x.clone()
    distributed.all_reduce(total)
    return total


def averaged(gradient: Tensor) -> Tensor:
    """Return the mean of a gradient over all processes."""
    return added_up(gradient) / n_ranks()


@contextmanager
def rows_are_gathered() -> Iterator[None]:
    """Leave rows as they are in losses that would gather them from all processes."""
    token = _DONE.set(True)
    try:
        yield
    finally:
        _DONE.reset(token)


def of_all_ranks(
    *names: str,
) -> Callable[[Callable[Concatenate[L, P], T]], Callable[Concatenate[L, P], T]]:
    """Return a decorator of a loss's ``forward``: it takes the rows of all processes.

    Only while the loss trains, with gradients enabled, if its attribute ``gather`` is true and it
    is no mean over rows (``batching``). Every process has to call then. ``view`` groups rows: all
    of view 0 come first.

    Parameters
    ----------
    *names : str
        Arguments with a row for each example, the first of them required.
    """

    def decorated(forward: Callable[Concatenate[L, P], T]) -> Callable[Concatenate[L, P], T]:
        signature = inspect.signature(forward)

        @wraps(forward)
        def called(loss: L, *args: P.args, **kwargs: P.kwargs) -> T:
            asked: Any = loss
            is_alone = n_ranks() == 1 or _DONE.get() or not torch.is_grad_enabled()
            is_mean = asked.batching == "mean"
            if is_alone or is_mean or not (asked.training and asked.gather):
                return forward(loss, *args, **kwargs)
            given = signature.bind(loss, *args, **kwargs).arguments
            view, n = given.get("view"), len(given[names[0]])
            sizes = [n] if view is None else torch.bincount(view).tolist()
            gathered = {k: gathered_views(given[k], sizes) for k in names if k in given}
            first = next(iter(given))
            rest = {k: v for k, v in (given | gathered).items() if k != first}
            with rows_are_gathered():
                return forward(loss, **rest)  # pyright: ignore[reportCallIssue]

        return called

    return decorated
