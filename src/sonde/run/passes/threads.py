"""The number of threads that a block computes in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def using_threads(n: int | None) -> Iterator[None]:
    """Compute in ``n`` threads inside a block; None keeps the current number."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
