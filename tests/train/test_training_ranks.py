"""Two processes that train together give the gradients of one with all rows."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import models
from sonde.tap.training.terms import training
from sonde.train import Align, Contrast, RateReduction

LABEL = torch.tensor([0, 2, 2, 0, 1, 1, 2, 1])


def losses(cut: int) -> dict[Any, Any]:
    """Return losses of all rows together, and means too if all processes have as many."""
    torch.manual_seed(1)
    align = Align("cosine", "linear", width=16)
    align(torch.ones(1, 16), torch.ones(1, 16))  # makes the projector, the same in all
    together = {
        "0": [RateReduction(), Contrast(0.5)],
        "2": Contrast(0.5, memory=4),
        ("2", "0"): Align("relational"),
    }
    return together | ({("0", "2"): align} if cut == 4 else {})


def trained(net: nn.Module, root: nn.Module, rows: slice, cut: int) -> dict[str, Tensor | None]:
    """Return gradients of a second step: of two views, labels, and a memory."""
    given = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(1))
    with training(root, losses(cut)) as terms:
        for _ in range(2):
            net.zero_grad()
            terms._held.zero_grad()
            task = torch.stack([root(view[rows]).mean() for view in given]).sum()
            (0.0 * task + terms.loss(label=LABEL[rows])).backward()
            terms.step()
    own = {f"own {n}": p.grad for n, p in enumerate(terms.parameters())}
    return {n: p.grad for n, p in net.named_parameters()} | own


def evaluated_alone(net: nn.Module) -> Tensor:
    """Return the values of losses of all rows together, on one process's own batches."""
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(2))
    with training(net, {"0": RateReduction(), "2": Contrast(0.5)}) as terms:
        batches = [(x[:5], {"label": LABEL[:5]}), (x[5:], {"label": LABEL[5:]})]
        return torch.tensor(list(terms.evaluate(batches).values()))


def in_rank(rank: int, folder: Path, cut: int) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    net = models.mlp(7).train()
    rows = slice(0, cut) if rank == 0 else slice(cut, 8)
    found = trained(net, DistributedDataParallel(net), rows, cut)
    if rank == 0:  # the other process does not take part
        found["alone"] = evaluated_alone(net)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.truth("one process with all rows")
@pytest.mark.parametrize("cut", [4, 5])
def test_gradients_of_two_processes_are_those_of_one(tmp_path, cut):
    context = multiprocessing.get_context("spawn")  # a fork of threads may wait for ever
    works = [context.Process(target=in_rank, args=(rank, tmp_path, cut)) for rank in (0, 1)]
    for work in works:
        work.start()
    for work in works:
        work.join(60)
        assert work.exitcode == 0
    net = models.mlp(7).train()
    expected = trained(net, net, slice(0, 8), cut)
    assert any(name.startswith("own") for name in expected) == (cut == 4)
    alone = torch.load(tmp_path / "0.pt")["alone"]
    torch.testing.assert_close(alone, evaluated_alone(models.mlp(7)))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, gradient in expected.items():
            if gradient is not None:
                torch.testing.assert_close(found[name], gradient, msg=f"{rank} {name}")
