"""Divergence and time of a model with a sum of learners, by their number for each row."""

from copy import deepcopy
from statistics import median
from time import process_time
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde_studies.worlds.learning import minimise


def divergence(
    net: nn.Module, made: nn.Module, x: Float[Tensor, "row column"]
) -> Float[Tensor, ""]:
    """Return the mean divergence of a model's answers from a net's, in nats."""
    wanted = net(x).log_softmax(1).detach()
    return (wanted.exp() * (wanted - made(x).log_softmax(1))).sum(1).mean()


@torch.no_grad()
def nats_of(net: nn.Module, made: nn.Module, x: Float[Tensor, "row column"]) -> float:
    """Return the divergence as a number."""
    return float(divergence(net, made, x))


@torch.no_grad()
def nats_if_dealt(
    net: nn.Module, made: nn.Module, x: Float[Tensor, "row column"], number: Int[Tensor, "row"]
) -> float:
    """Return the divergence if each row runs a given number of learners of ``mlp``."""
    gate: Any = made.get_submodule("mlp")

    def picked(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return gate.partial(args[0])[torch.arange(len(number)), number]

    handle = gate.register_forward_hook(picked)
    try:
        return nats_of(net, made, x)
    finally:
        handle.remove()


def with_number_for_all(
    net: nn.Module,
    made: nn.Module,
    x: Float[Tensor, "row column"],
    number: int,
    steps: int,
    seed: int,
) -> nn.Module:
    """Return a copy in which every row runs ``number`` learners of ``mlp``, trained on with it."""
    same = deepcopy(made)
    gate: Any = same.get_submodule("mlp")
    always(gate, number)
    learners = [p for name, p in gate.named_parameters() if not name.startswith("gate")]
    minimise(lambda at: divergence(net, same, x[at]), learners, len(x), steps=steps, seed=seed)
    return same


@torch.no_grad()
def always(gate: Any, number: int) -> None:
    """Let every row run the same number of learners."""
    gate.gate.weight.zero_()
    gate.gate.bias.zero_()
    gate.gate.bias[number] = 1.0


@torch.no_grad()
def microseconds(
    module: nn.Module, gate: Any, h: Float[Tensor, "row dim"], rounds: int
) -> dict[str, float]:
    """Return the median processor time a row of module, gated and all learners, in turns."""
    full = deepcopy(gate)
    always(full, len(gate.right))
    ways = {"module": module, "gated": gate, "all": full}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, each in ways.items():
            start = process_time()
            each(h)
            spent[way].append(process_time() - start)
    return {way: 1e6 * median(times) / len(h) for way, times in spent.items()}
