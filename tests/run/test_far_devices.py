"""Rows on devices that are not there (``pretend_devices``): what CUDA would refuse is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.truth("the same rows, and the same model, on the CPU")
def test_instruments_and_models_take_rows_of_other_devices():
    """A model may lie on two devices, with its head on the second."""
    done = subprocess.run(
        [sys.executable, "device_case.py"], capture_output=True, text=True, cwd=TESTS
    )
    assert done.returncode == 0, done.stderr
    *faults, counts = done.stdout.splitlines()
    assert not faults, done.stdout
    scores, pairs, model = map(int, counts.split())
    assert scores >= 60
    assert pairs >= 12
    assert model == 8


@pytest.mark.slow
def test_a_device_that_is_not_there_refuses_what_cuda_refuses():
    program = """if True:
        import torch
        from pretend_devices import Pretending
        with Pretending():
            x = torch.ones(2, 2).to("far:0")
            assert x.device == torch.device("far:0") and (x @ x).cpu().tolist() == [[2, 2]] * 2
            assert (x * torch.tensor(3.0))[torch.tensor([0])].tolist() == [[3, 3]]
            for act in (lambda: x + torch.ones(2, 2), lambda: x @ x.to("far:1"), lambda: x.numpy()):
                try:
                    act()
                except (RuntimeError, TypeError):
                    continue
                raise SystemExit("not refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
