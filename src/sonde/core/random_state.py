"""Restores the user's random state after libraries are loaded."""

import random
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def kept_random_state() -> Generator[None]:
    """Restore the state of Python's ``random`` at the end of the block.

    Some libraries draw from it when they are imported (rich does, and scikit-learn imports rich).
    """
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
