"""Models that are sharded over ranks: the numbers of the whole model, or refused by name."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import sonde
from sonde.core import SondeError
from sonde.core.edit import Scale
from sonde.detect import Mahalanobis
from sonde.tap.hooks.sharding import split_layers
from tools import sharded_table

ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
OF_PARTS = {"read units of an MLP", "read heads", "edit units of an MLP"}
OF_WEIGHTS = {"insert a layer", "compress"}


@pytest.mark.slow
@pytest.mark.truth("the same model in one process")
def test_jobs_are_right_or_refused_on_every_rank():
    refused = {
        "`DistributedDataParallel`": set(),
        "`fully_shard`, bfloat16": OF_WEIGHTS,
        '`tp_plan="auto"`': OF_PARTS | OF_WEIGHTS,
    }
    for kinds in sharded_table.table(list(refused)):
        for kind, verdicts in kinds.items():
            words = {job: text.split(":")[0] for job, text in verdicts.items()}
            expected = dict.fromkeys(sharded_table.JOBS, "right")
            assert words == expected | dict.fromkeys(refused[kind], "refused"), verdicts


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def edited(model: nn.Module, site: str) -> Tensor:
    with sonde.editing(model, Scale(2.0), site), torch.no_grad():
        return model(ROWS)


def tapped(model: nn.Module, site: str) -> Tensor:
    with sonde.Tap(model, site) as tap, torch.no_grad():
        model(ROWS)
    return tap.rows[f"{site}:out"]


def read(model: nn.Module, site: str, rows: Tensor = ROWS) -> Tensor:
    stream = sonde.read(model, rows, sites=site, check=False)
    return torch.cat([batch.rows[f"{site}:out"] for batch in stream])


def outcome(job, model: nn.Module, *options) -> str:
    try:
        numbers = job(model, *options)
    except SondeError as error:
        return f"refused: {error}"
    expected = job(net(), *options)
    return "right" if torch.allclose(numbers, expected, atol=1e-6) else f"WRONG {numbers.shape}"


def in_rank(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def split(whole: nn.Module, local: bool = True) -> nn.Module:
        plan: Any = {"0": ColwiseParallel(use_local_output=local), "2": RowwiseParallel()}
        return parallelize_module(whole, mesh, plan)

    dead = net()
    for weight in dead[0].parameters():
        nn.init.zeros_(weight)
    own_rows = ROWS + rank
    jobs = [(read, "0"), (read, "1"), (read, "2"), (tapped, "0"), (edited, "1"), (edited, "2")]
    outcomes = {f"{job.__name__} {site}": outcome(job, split(net()), site) for job, site in jobs}
    for job in (read, tapped, edited):
        outcomes[f"{job.__name__} DTensor"] = outcome(job, split(net(), local=False), "0")
    outcomes["read zeros"] = outcome(read, split(dead), "0")
    outcomes["read other rows"] = outcome(read, split(net()), "2", own_rows)
    torch.save(outcomes, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def ended(works: list[Any], folder: Path) -> list[dict[str, str]]:
    """Return the outcomes of processes, which all have to end well."""
    for work in works:
        work.start()
    for work in works:
        work.join(120)
        assert work.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(works))]


@pytest.mark.slow
@pytest.mark.truth("a rank holds 8 of the 16 units, or all of them in a DTensor")
def test_sites_that_ranks_hold_in_parts(tmp_path):
    context = multiprocessing.get_context("spawn")
    works = [context.Process(target=in_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for outcomes in ended(works, tmp_path):
        refused = {"read 0", "read 1", "tapped 0", "edited 1", "read zeros"}
        for name in refused:
            assert "refused" in outcomes[name], (name, outcomes[name])
            assert "DTensor" in outcomes.pop(name)
        assert "the same inputs on all 2 ranks" in outcomes.pop("read other rows")
        assert set(outcomes.values()) == {"right"}, outcomes


def scored(model: nn.Module, site: str) -> Tensor:
    stream, group = sonde.read(model, ROWS, sites=site, check=False), distributed.group.WORLD
    fitted = sonde.fit(Mahalanobis(), stream, progress=False, group=group)
    table = sonde.score(fitted, model, ROWS + 1.0, progress=False, group=group)
    return torch.tensor(table.column("score").to_pylist())


def in_rank_of_mesh(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("first", "second"))

    def replicated() -> Any:
        model = net()
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def both() -> Any:
        plan: Any = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        return fully_shard(parallelize_module(net(), mesh["second"], plan), mesh=mesh["first"])

    def beside() -> nn.Module:
        model = parallelize_module(net(), mesh["second"], {"2": ColwiseParallel()})
        fully_shard(model[0], mesh=mesh["first"])
        return model

    jobs = [(read, "0"), (tapped, "2"), (edited, "1"), (scored, "0")]
    outcomes = {
        f"{build.__name__} {job.__name__} {site}": outcome(job, build(), site)
        for build in (replicated, both, beside)
        for job, site in [*jobs, (read, "2")]
    }
    torch.save(outcomes, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.truth("the same model in one process")
def test_meshes_of_two_axes(tmp_path):
    context = multiprocessing.get_context("spawn")
    works = [context.Process(target=in_rank_of_mesh, args=(rank, tmp_path)) for rank in range(4)]
    for outcomes in ended(works, tmp_path):
        for name, text in outcomes.items():
            word, weight = ("right", "") if "replicated" in name else ("refused", "splits")
            assert text.startswith(word), (name, text)
            assert weight in text, (name, text)


def test_a_group_of_one_rank_costs_no_walk_over_the_weights(tmp_path):
    class Counted(nn.Linear):
        walks = 0

        def named_parameters(self, *args, **kwargs):
            Counted.walks += 1
            return super().named_parameters(*args, **kwargs)

    model = Counted(3, 2)
    meet = f"file://{tmp_path / 'meet'}"
    distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    try:
        assert split_layers(model) is None
    finally:
        distributed.destroy_process_group()
    assert Counted.walks == 0
