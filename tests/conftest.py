"""Shapes are checked under pytest only: every sonde module is imported through jaxtyping's hook.

Each of several pytest workers computes on one thread, whatever the environment asks for: workers
whose threads wait for each other's cores took four to ten times as long. Ctrl-C works in what tests
start even where a script that runs in the background has told its children to ignore it.
"""

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import shape_checker

pytest_plugins = ["processor_time"]

collect_ignore = ["pretend_devices.py", "device_case.py"]  # they change torch for a whole process

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
shape_checker.install()


def pytest_sessionstart():
    """Collect tests without collecting garbage: a fifth of that time goes into it."""
    gc.disable()


def pytest_collection_finish():
    """Leave what was imported and collected out of every later collection of garbage."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown():
    """Fail the test that leaves gradients off: later tests would fail instead of it."""
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("gradients were left off")
