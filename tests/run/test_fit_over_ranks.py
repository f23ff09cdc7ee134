"""``sonde.fit(..., group=)``: two ranks give the bytes of one process, and end with a reason."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

import sonde
from sonde.core import SondeError
from sonde.detect import KNN, Mahalanobis
from sonde.explain import SparseAutoencoder
from sonde.measure import ParticipationRatio

ROWS = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
BATCH = 32


class Net(nn.Module):
    """A net that fails on rank 1 at its first whole batch, in a way that a test chooses."""

    fails = ""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == BATCH and distributed.is_initialized() and distributed.get_rank() == 1:
            if Net.fails == "error":
                raise ValueError("a row that rank 1 cannot read")
            if Net.fails == "death":
                os.kill(os.getpid(), signal.SIGKILL)
        return self.last(torch.relu(self.first(x)))


def fit(model: nn.Module, rows: Tensor = ROWS, methods=None, **options) -> sonde.Fitted:
    stream = sonde.read(model, rows, sites="first", batch_size=BATCH, check=False)
    asked = [Mahalanobis(), KNN(k=3), ParticipationRatio()] if methods is None else methods
    return sonde.fit(asked, stream, unit_size=64, progress=False, **options)


def failure(fails: str, group, **options) -> str:
    Net.fails = fails
    try:
        fit(Net(), group=group, **options)
    except (SondeError, ValueError) as error:
        return " ".join([str(error), *getattr(error, "__notes__", [])])
    return "no error"


def in_rank(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    group, mesh = distributed.group.WORLD, init_device_mesh("cpu", (2,))
    place = folder / f"run of {rank}"
    fit(Net(), group=group, directory=place).save(folder / f"replicas {rank}.sonde")
    sharded = fully_shard(Net(), mesh=mesh)
    fit(sharded, group=group).save(folder / f"shards {rank}.sonde")
    texts = {"plan": failure_of_plans(rank, group)}
    try:
        fit(sharded, methods=[SparseAutoencoder(16)], group=group)
    except SondeError as error:
        texts["learner"] = str(error)
    texts["error"] = failure("error", group)
    torch.save(texts, folder / f"texts {rank}.pt")
    texts["death"] = failure("death", group)
    torch.save(texts, folder / f"texts {rank}.pt")


def failure_of_plans(rank: int, group) -> str:
    try:
        fit(Net(), ROWS[: 500 + rank], group=group)
    except SondeError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
@pytest.mark.truth("the bytes of one process")
def test_two_ranks_give_the_bytes_of_one_process_and_say_which_rank_ended(tmp_path):
    context = multiprocessing.get_context("spawn")
    works = [context.Process(target=in_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for work in works:
        work.start()
    for work in works:
        work.join(120)
    assert [work.exitcode for work in works] == [0, -signal.SIGKILL]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(Net()).save(tmp_path / "one.sonde")
    torch.set_num_threads(before)
    one = (tmp_path / "one.sonde").read_bytes()
    for name in ("replicas", "shards"):
        for rank in (0, 1):
            assert (tmp_path / f"{name} {rank}.sonde").read_bytes() == one, name
    assert (tmp_path / "run of 0").exists()
    assert not (tmp_path / "run of 1").exists()
    first, second = (torch.load(tmp_path / f"texts {rank}.pt") for rank in (0, 1))
    assert "expected the same data" in first["plan"]
    assert "expected the same data" in second["plan"]
    assert "trains step by step" in first["learner"]
    assert "a row that rank 1 cannot read" in first["error"]
    assert "on rank 1" in first["error"]
    assert "rank 1 on" in second["error"]
    assert "rank 1 of 2 ended" in first["death"]
    assert "death" not in second
