"""A disk that is full, as the operating system tells it."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``n_bytes``; Python ignores the signal of it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
