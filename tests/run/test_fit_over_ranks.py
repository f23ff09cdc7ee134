"""``group=``: two ranks give the bytes of one process, and end with a reason."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from torch import Tensor, distributed, nn

import sonde
from sonde.core import SondeError
from sonde.detect import KNN, Mahalanobis
from sonde.explain import SparseAutoencoder
from sonde.measure import ParticipationRatio
from sonde.run.passes.storing import write_over_ranks
from sonde.store import write_store

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
    fitted = sonde.Fitted.load(folder / f"shards {rank}.sonde")
    for name, model in (("replicas", Net()), ("shards", sharded)):
        use(model, fitted, folder / f"{name} {rank}", group)
    texts = {"plan": failure_of_plans(rank, group)}
    texts["scores"] = failure_of_scores(rank, fitted, group)
    try:
        fit(sharded, methods=[SparseAutoencoder(16)], group=group)
    except SondeError as error:
        texts["learner"] = str(error)
    texts["error"] = failure("error", group)
    torch.save(texts, folder / f"texts {rank}.pt")
    texts["death"] = failure("death", group)
    torch.save(texts, folder / f"texts {rank}.pt")


MORE = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))


def use(model: nn.Module, fitted: sonde.Fitted, place: Path, group=None) -> None:
    """Score, calibrate and store, on ranks or alone, and save what comes of it."""
    options = {"batch_size": BATCH, "progress": False, "group": group}
    table = sonde.score(fitted, model, MORE, explain=2, **options)
    parquet.write_table(table, f"{place} scores.parquet")
    sonde.calibrate(fitted, model, MORE, **options).save(f"{place} calibrated.sonde")
    stream = sonde.read(model, MORE, sites="first", batch_size=BATCH, check=False)
    if group is None:
        write_store(stream, f"{place} acts", unit_size=64)
    else:
        folder = f"{place} acts".replace(" 1 ", " 0 ")
        write_over_ranks(stream, folder, group, unit_size=64, progress=False)


def failure_of_plans(rank: int, group) -> str:
    try:
        fit(Net(), ROWS[: 500 + rank], group=group)
    except SondeError as error:
        return str(error)
    return "no error"


def failure_of_scores(rank: int, fitted: sonde.Fitted, group) -> str:
    try:
        sonde.score(fitted, Net(), MORE[: 400 + rank], group=group, progress=False)
    except SondeError as error:
        return str(error)
    return "no error"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    use(Net(), sonde.Fitted.load(tmp_path / "one.sonde"), tmp_path / "alone")
    torch.set_num_threads(before)
    one = (tmp_path / "one.sonde").read_bytes()
    for name in ("replicas", "shards"):
        for rank in (0, 1):
            assert (tmp_path / f"{name} {rank}.sonde").read_bytes() == one, name
            for file in ("scores.parquet", "calibrated.sonde"):
                alone = (tmp_path / f"alone {file}").read_bytes()
                assert (tmp_path / f"{name} {rank} {file}").read_bytes() == alone, (name, file)
        assert contents(tmp_path / f"{name} 0 acts") == contents(tmp_path / "alone acts"), name
    assert (tmp_path / "run of 0").exists()
    assert not (tmp_path / "run of 1").exists()
    first, second = (torch.load(tmp_path / f"texts {rank}.pt") for rank in (0, 1))
    assert "expected the same data" in first["plan"]
    assert "expected the same data" in second["plan"]
    assert first["scores"].startswith("score: expected the same data")
    assert "trains step by step" in first["learner"]
    assert "a row that rank 1 cannot read" in first["error"]
    assert "on rank 1" in first["error"]
    assert "rank 1 on" in second["error"]
    assert "rank 1 of 2 ended" in first["death"]
    assert "death" not in second
