"""Two processes that train together hold the same layer, and move its codes as one would."""

import copy
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sonde.layers import Attention, UnMixNorm, VectorQuantizer
from sonde.train import StructuredTransfer

CUT = 5
"""Rows of the first process, of eight."""


def norm_of(width: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, width), torch.full((width,), 0.7)
    return norm


def layers() -> dict[str, nn.Module]:
    """Return the layers whose forward pass moves their own state."""
    torch.manual_seed(6)
    return {
        "codes": VectorQuantizer(3, 5, seed=1),
        "stages": VectorQuantizer(3, 4, k=2, stages=2, decay=0.8, seed=2),
        "cosine": VectorQuantizer(3, 6, metric="cosine", revive=False),
        "norm": UnMixNorm(norm_of(3), 4),
        "random": Attention(3, 1, "random:0.5"),
    }


def trained(rows: slice, processes: int) -> dict[str, Tensor]:
    """Return the state of every layer after three steps behind a map that learns."""
    draw, found = torch.Generator().manual_seed(3), dict[str, Tensor]()
    given = torch.randn(3, 8, 3, 7, generator=draw)
    for name, layer in layers().items():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(7, 7), copy.deepcopy(layer)).double().train()
        turn = (lambda x: x) if name == "norm" else (lambda x: x.mT)
        net.insert(1, Turned(turn))
        root = net if processes == 1 else DistributedDataParallel(net)
        for x in given.double():
            net.zero_grad()
            # a process that holds fewer rows has fewer terms of the same mean
            (root(x[rows]).sin().sum() * processes / 8).backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * (0.0 if p.grad is None else p.grad)
        found |= {f"{name} {key}": value.clone() for key, value in net.state_dict().items()}
    maps = torch.randn(2, 2, 8, 3, 4, 4, generator=draw)
    torch.manual_seed(5)
    loss = StructuredTransfer(((3, 3), (3, 3)))
    loss([x[rows] for x in maps[0]], [x[rows] for x in maps[1]])
    return found | {"start": loss.start}


class Turned(nn.Module):
    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def forward(self, x):
        return self.turn(x)


def in_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.save(trained(slice(0, CUT) if rank == 0 else slice(CUT, 8), 2), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.truth("one process with all rows")
def test_layers_of_two_processes_are_equal_and_follow_all_rows(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork of threads may wait for ever
    works = [context.Process(target=in_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for work in works:
        work.start()
    for work in works:
        work.join(60)
        assert work.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    one = trained(slice(0, 8), 1)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)
        if name != "start":  # a mean over processes, whatever they hold
            torch.testing.assert_close(value, one[name], msg=name)
