"""Losses that a loop calls itself, on two processes: the gradients of one with all rows."""

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sonde.tap.hooks.sharding import whole_tensor
from sonde.tap.training import ranks
from sonde.train import (
    Align,
    CauchySchwarzBottleneck,
    Contrast,
    LatentTerms,
    Orthogonal,
    RateReduction,
    Separate,
)

N = 8
LABEL = torch.tensor([0, 2, 2, 0, 1, 1, 2, 1])
VIEWS = torch.arange(2).repeat_interleave(N // 2)
MADE: dict[str, Any] = {
    "RateReduction": RateReduction,
    "Contrast": partial(Contrast, 0.5),
    "Contrast, views": partial(Contrast, 0.5),
    "Contrast, uniform": partial(Contrast, 0.5, "uniform"),
    "Align": partial(Align, "cosine"),
    "Align, relational": partial(Align, "relational"),
    "Separate": Separate,
    "Separate, hsic": partial(Separate, "hsic"),
    "LatentTerms": LatentTerms,
    "CauchySchwarzBottleneck": partial(CauchySchwarzBottleneck, widths=(1.0, 1.0, 1.0)),
    "Orthogonal": Orthogonal,
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 6)
    return nn.Sequential(*layers).double().train()


def given(name: str, x: Tensor, first: Tensor, rows: Tensor) -> tuple[Any, ...]:
    """Return the arguments of a loss, from the states of some rows."""
    if name == "Contrast, views":  # half of the rows of each view
        return x, None, VIEWS[rows]
    if name in ("RateReduction", "Contrast", "Contrast, uniform"):
        return x, LABEL[rows]
    if name == "CauchySchwarzBottleneck":
        return x, first, x[:, :1], LABEL[rows, None].double()
    if name == "LatentTerms":  # with the draws that the model used
        return x, first, x + first.detach()
    return x, first


def rows_of(rank: int | None) -> Tensor:
    """Return the rows of a process: half of each view; all rows for None."""
    every = torch.arange(N)
    return every if rank is None else every.reshape(2, 2, N // 4)[:, rank].flatten()


def gradient(name: str, root: nn.Sequential, rank: int | None, called: Any = None) -> Tensor:
    rows, loss = rows_of(rank), MADE[name]().double()
    x = torch.randn(N, 7, generator=torch.Generator().manual_seed(1)).double()[rows]
    states = (root if called is None else called)(x)
    if name == "Orthogonal":
        value = loss(root[2].weight) + 0.0 * states.sum()
    else:
        value = loss(*given(name, states, root[0](x).detach(), rows))
    value.backward()
    grads = [torch.zeros(p.shape) if p.grad is None else p.grad for p in root.parameters()]
    return torch.cat([whole_tensor(g).flatten().double() for g in grads])


def in_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found, mesh = dict[str, Tensor](), init_device_mesh("cpu", (2,))
    for name in MADE:
        root = net()
        found[f"DDP, {name}"] = gradient(name, root, rank, DistributedDataParallel(root))
    sharded = net()
    fully_shard(sharded, mesh=mesh)
    found["FSDP, Orthogonal"] = gradient("Orthogonal", sharded, rank)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.truth("one process with all rows")
def test_gradients_of_losses_in_a_loop_are_those_of_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("spawn")
    works = [context.Process(target=in_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for work in works:
        work.start()
    for work in works:
        work.join(120)
        assert work.exitcode == 0
    for rank in (0, 1):
        for case, found in torch.load(tmp_path / f"{rank}.pt").items():
            want = gradient(case.split(", ", 1)[1], net(), None)
            assert float(want.abs().max()) > 1e-4, case
            torch.testing.assert_close(found, want, msg=lambda m, c=case: f"{c}: {m}")


@pytest.mark.truth("the loss of the rows of both processes")
@pytest.mark.parametrize("name", [name for name in MADE if name not in ("Orthogonal", "Align")])
def test_a_loss_that_trains_reads_the_rows_of_all_processes(name, monkeypatch):
    root = net()
    x = torch.randn(N, 7, generator=torch.Generator().manual_seed(1)).double()

    def arguments(rows: Tensor) -> tuple[Any, ...]:
        return given(name, root(x[rows]), root[0](x[rows]).detach(), rows)

    loss, own = MADE[name]().double(), arguments(rows_of(0))
    whole, alone = loss(*arguments(rows_of(None))), loss(*own)
    other = {len(a): b for a, b in zip(own, arguments(rows_of(1)), strict=True) if a is not None}
    assert set(other) == {N // 2}
    pairs = [
        (part, twin)
        for a, b in zip(own, arguments(rows_of(1)), strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        for part, twin in (
            zip(a.split(2), b.split(2), strict=True) if name.endswith("views") else [(a, b)]
        )
    ]

    def gathered(part: Tensor) -> Tensor:
        twin = next(b for a, b in pairs if a.shape == part.shape and torch.equal(a, part))
        return torch.cat([part, twin])

    monkeypatch.setattr(ranks, "n_ranks", lambda: 2)
    monkeypatch.setattr(ranks, "gathered", gathered)
    torch.testing.assert_close(loss(*own), whole)
    assert abs(float((alone - whole).detach())) > 1e-6
    loss.gather = False
    torch.testing.assert_close(loss(*own), alone)
    loss.gather = True
    with torch.no_grad():  # a single process may evaluate
        torch.testing.assert_close(loss(*own), alone)
