"""What the benchmark on a GPU counts, without one."""

import warnings

import pytest
import torch

from benchmarks import large, rows


@pytest.mark.truth("the two waits that the work makes")
def test_waits_are_counted_and_not_what_torch_says_of_the_counting(monkeypatch):
    def set_mode(mode: str) -> None:
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all "
            "synchronizing operations",
            stacklevel=1,
        )

    def work() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    assert large.waits(work) == 2


def test_figures_name_the_gpus_that_they_belong_to(monkeypatch):
    assert torch.cuda.is_available() or "gpu" not in rows.versions()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Pretended {i}")
    assert rows.versions()["gpu"] == "Pretended 0, Pretended 1"
