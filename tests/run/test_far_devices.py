"""Rows on devices that are not there (``pretend_devices``): what CUDA would refuse is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def faults(part: str) -> tuple[str, int]:
    """Return what failed in a part of ``device_case.py``, and how many cases it tried."""
    done = subprocess.run(
        [sys.executable, "device_case.py", part], capture_output=True, text=True, cwd=TESTS
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return "\n".join(lines), int(last.removesuffix(" cases"))


@pytest.mark.slow
@pytest.mark.truth("the same rows on the CPU")
@pytest.mark.parametrize(("part", "least"), [("scores", 60), ("pairs", 12)])
def test_instruments_take_rows_of_other_devices(part, least):
    found, n_cases = faults(part)
    assert not found, found
    assert n_cases >= least


@pytest.mark.slow
@pytest.mark.truth("the same model on the CPU")
def test_a_model_may_lie_on_two_devices_with_its_head_on_the_second():
    found, n_cases = faults("model")
    assert not found, found
    assert n_cases == 8


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
