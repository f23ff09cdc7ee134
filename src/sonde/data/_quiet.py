"""Load in one thread at a time, without progress bars, advice and telemetry on the terminal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from threading import RLock

# from_pretrained replaces functions of transformers' classes while it runs and then puts back what
# it found: of two threads inside it, the later one puts back the other's replacement, and from
# then on no model of the process ties its weights.
_one_thread = RLock()


def _renew() -> None:
    global _one_thread
    _one_thread = RLock()


if hasattr(os, "register_at_fork"):  # the thread that holds the lock does not exist in a child
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers and the hub client inside the block, then restore their settings.

    Another thread waits until the block ends: transformers loads one model at a time.
    """
    with _one_thread, _silent():
        yield


@contextmanager
def _silent() -> Iterator[None]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    bars, level = not are_progress_bars_disabled(), logging.get_verbosity()
    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(ERROR + 1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()
            enable_progress_bars()


@contextmanager
def offline() -> Iterator[None]:
    """Make the hub clients use only their caches inside the block."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before
