"""Federated training of one sparse net, whose clients exchange weights of its mask."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import SparseTraining

DENSITY, PRUNED, LOCAL_STEPS, EXCHANGE_AT, BATCH, RATE = 0.1, 0.1, 9, 5, 32, 0.1
Weights = dict[str, Tensor]
Rows = tuple[Float[Tensor, "row dim"], Int[Tensor, "row"]]


def train_sparse_clients(
    net: nn.Module,
    clients: Sequence[Rows],
    score: Literal["congruity", "gradient"],
    *,
    rounds: int,
    seed: int,
) -> nn.Module:
    """Return a copy of a net that sparse clients trained together.

    In each round the server fixes a direction, the mean gradient of a batch of every client. Each
    client takes the server's weights and mask, trains them and once exchanges a part of the mask.
    The server takes the mean of the clients' weights, and keeps those that most clients use.

    Parameters
    ----------
    net : nn.Module
    clients : sequence of (Tensor, Tensor)
        Rows and labels of each client.
    score : {"congruity", "gradient"}
        Whether clients exchange weights by agreement with the direction, or by their own gradient.
    rounds, seed : int
    """
    server, draw = deepcopy(net), torch.Generator().manual_seed(seed)
    with SparseTraining(DENSITY, score="gradient", seed=seed).on(server, _sgd(server)) as masks:
        mask: Weights = masks.active
    for turn in range(rounds):
        slopes = [_slopes(server, *_batch(rows, draw)) for rows in clients]
        direction = {name: _mean([own[name] for own in slopes]) for name in slopes[0]}
        share = PRUNED * (1 + math.cos(math.pi * turn / rounds)) / 2
        sparse = SparseTraining(
            DENSITY, score, period=EXCHANGE_AT, remove=share, seed=seed + turn, steps=10**9
        )  # the share falls over rounds, not within one
        weights, found = list[Weights](), list[Weights]()
        for rows in clients:
            own = deepcopy(server)
            optimiser = _sgd(own)
            with sparse.on(own, optimiser, direction, active=mask) as masks:
                for _ in range(LOCAL_STEPS):
                    _learn(own, optimiser, rows, draw)
            weights.append({name: p.detach() for name, p in own.named_parameters()})
            found.append(masks.active)
        mean = {name: _mean([own[name] for own in weights]) for name in weights[0]}
        mask = {name: joined_mask([own[name] for own in found], mean[name]) for name in mask}
        with torch.no_grad():
            for name, p in server.named_parameters():
                p.copy_(mean[name] * mask[name] if name in mask else mean[name])
    return server


def joined_mask(
    masks: Sequence[Bool[Tensor, "*axes"]], mean: Float[Tensor, "*axes"]
) -> Bool[Tensor, "*axes"]:
    """Return the mask of the weights that most clients use, the larger first among equals.

    Parameters
    ----------
    masks : sequence of Bool[Tensor, "*axes"]
        Of the clients, with equal counts; the joined mask has that count.
    mean : Float[Tensor, "*axes"]
        Of the clients' weights.
    """
    votes = torch.stack(list(masks)).sum(0).double()
    rank = votes + mean.abs() / (1 + mean.abs().max())  # below 1: decides between equal votes
    joined = torch.zeros(mean.numel(), dtype=torch.bool)
    joined[rank.flatten().argsort(descending=True, stable=True)[: int(masks[0].sum())]] = True
    return joined.reshape(mean.shape)


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean(0)


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), RATE)


def _batch(rows: Rows, draw: torch.Generator) -> Rows:
    some = torch.randint(len(rows[0]), (BATCH,), generator=draw)
    return rows[0][some], rows[1][some]


@torch.enable_grad()
def _slopes(net: nn.Module, x: Tensor, label: Tensor) -> Weights:
    named = dict(net.named_parameters())
    found = torch.autograd.grad(cross_entropy(net(x), label), list(named.values()))
    return dict(zip(named, found, strict=True))


@torch.enable_grad()
def _learn(
    net: nn.Module, optimiser: torch.optim.Optimizer, rows: Rows, draw: torch.Generator
) -> None:
    x, label = _batch(rows, draw)
    optimiser.zero_grad()
    cross_entropy(net(x), label).backward()
    optimiser.step()
