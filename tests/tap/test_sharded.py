"""Layers that tensor parallelism splits over ranks are refused by name, in two processes."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import sonde
from sonde.compress import RTN
from sonde.core import SondeError
from sonde.core.edit import Scale
from sonde.detect import Mahalanobis
from sonde.train import RateReduction

ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def refusals(model, probe) -> list[str]:
    jobs = {
        "read": lambda: next(iter(sonde.read(model, ROWS, sites="0"))),
        "tap": lambda: sonde.Tap(model, "0").__enter__(),
        "edit": lambda: sonde.editing(model, Scale(2.0), "0").__enter__(),
        "guard": lambda: sonde.Guard(model, probe, alpha=None),
        "training": lambda: sonde.training(model, {"0": RateReduction()}).__enter__(),
        "compress": lambda: RTN().plan(model),
    }
    found = []
    for name, job in jobs.items():
        try:
            job()
            found.append(f"{name} ran")
        except SondeError as error:
            found.append(f"{name}: {error}")
    return found


def in_rank(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    os.environ |= {"LOCAL_RANK": str(rank)}
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    stream = sonde.read(net(), ROWS, sites="0")
    probe = sonde.fit(Mahalanobis(), stream, calibrate=0, progress=False)
    mesh = init_device_mesh("cpu", (2,))
    split = parallelize_module(net(), mesh, {"0": ColwiseParallel()})
    (folder / f"{rank}.txt").write_text("\n".join(refusals(split, probe)))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.truth("a rank holds 8 of the 16 units, so nothing that it reads is the model's")
def test_layers_that_are_split_over_ranks_are_refused_by_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    works = [context.Process(target=in_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for work in works:
        work.start()
    for work in works:
        work.join(120)
        assert work.exitcode == 0
    for rank in (0, 1):
        told = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert len(told) == 6
        assert all("DTensor" in line for line in told), told
