"""Keeps the user's random numbers as they were while libraries are loaded."""

import random
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def kept_random_state() -> Generator[None]:
    """Give back the state of Python's ``random`` as it was before the block.

    Some libraries draw from it when they are imported (rich does, and scikit-learn imports rich).
    """
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
