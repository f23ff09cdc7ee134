"""Clients that see two classes each send compressed updates: what a megabyte of uplink buys.

A simulated federation of ten clients on one machine; nothing is sent over a network.
"""

import itertools
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.compress import QsgdCodec, SignCodec, TopKCodec
from sonde.core import Codec
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

CLIENTS, LOCAL, ROUNDS, TINY, BATCH, RATE = 10, 5, 60, 3, 32, 0.1
ARMS = ("plain", "control", "control, 7 bits", "control, top 5 %", "control, signs")


@final
class FederatedBitsStudy(Study):
    """Averaging of local steps, with control variates and with three codecs of the updates."""

    name = "federated-bits"
    title = "do control variates and codecs reach plain averaging at a fraction of the bits?"
    paper = "huang2024scallion"
    fidelity = "what is sent is the change of a client's variate; all take part in every round"
    data = "digits: ten clients of two classes each, 1,000 rows in all, 797 to judge"
    claims = (
        Claim("control", "Control variates help where clients see different classes.",
              "accuracy after all rounds, with them less without"),
        Claim("bits", "With updates of few bits they still reach plain averaging, to two points.",
              "accuracy of control variates with 7 bits less plain averaging, and 0.02"),
        Claim("cheaper", "At a quarter of the uplink or less.",
              "0.25 less bytes with 7 bits over bytes of plain averaging"),
    )  # fmt: skip
    null = Claim("alike", "Where clients hold the same classes, control variates gain nothing.",
                 "accuracy after all rounds, with them less without")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way; once with rows dealt out at random."""
        x, label = shuffled_digits(seed)
        rounds = TINY if tiny else ROUNDS
        found: dict[str, tuple[float, int]] = {}
        for arm in ARMS:
            tick(arm)
            found[arm] = _trained(arm, x, label, seed, rounds, skewed=True)
        alike = [_trained(arm, x, label, seed, rounds, skewed=False)[0] for arm in ARMS[:2]]
        plain, few = found["plain"], found["control, 7 bits"]
        return {
            "control": found["control"][0] - plain[0],
            "bits": few[0] - plain[0] + 0.02,
            "cheaper": 0.25 - few[1] / plain[1],
            "alike": alike[1] - alike[0],
            **{f"accuracy | {arm}": v[0] for arm, v in found.items()},
            **{f"megabytes up | {arm}": v[1] / 1e6 for arm, v in found.items()},
        }


def _codec(arm: str, seed: int) -> Callable[[Tensor], tuple[Tensor, int]]:
    """Return what gives of an update what the server reads, and its bytes."""
    seeds = itertools.count(10_000 * seed)
    codecs: dict[str, Callable[[], Codec]] = {
        "7 bits": lambda: QsgdCodec(levels=63, seed=next(seeds)),
        "top 5 %": lambda: TopKCodec(0.05),
        "signs": SignCodec,
    }
    make = codecs.get(arm.rpartition(", ")[2])

    def sent(update: Tensor) -> tuple[Tensor, int]:
        if make is None:
            return update, 4 * update.numel()
        codec = make()
        stream = codec.encode(update)
        return codec.decode(stream), len(stream)

    return sent


def _trained(
    arm: str, x: Tensor, label: Tensor, seed: int, rounds: int, skewed: bool
) -> tuple[float, int]:
    """Return accuracy on held rows and the bytes that all clients sent."""
    net, send = drawn(lambda: mlp(64, 32), seed), _codec(arm, seed)
    draw, n = torch.Generator().manual_seed(seed), 1_000
    order = label[:n].argsort(stable=True) if skewed else torch.randperm(n, generator=draw)
    parts = list(order.chunk(CLIENTS))
    weights = list(net.parameters())
    state = nn.utils.parameters_to_vector(weights).detach()
    variates = torch.zeros(CLIENTS, len(state))
    n_bytes, controls = 0, arm != "plain"
    for _ in range(rounds):
        updates = list[Tensor]()
        mean = variates.mean(0)
        for i, rows in enumerate(parts):
            local = state.clone()
            for _ in range(LOCAL):
                some = rows[torch.randint(len(rows), (BATCH,), generator=draw)]
                nn.utils.vector_to_parameters(local, weights)
                loss = cross_entropy(net(x[some]), label[some])
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
                turned = gradient - variates[i] + mean if controls else gradient
                local = local - RATE * turned
            # what is sent is the change of the client's own mean gradient
            own = (state - local) / (LOCAL * RATE) + (variates[i] - mean if controls else 0.0)
            told, size = send(own - variates[i] if controls else own)
            n_bytes += size
            updates.append(told)
        step = torch.stack(updates)
        if controls:
            variates = variates + step
            state = state - LOCAL * RATE * variates.mean(0)
        else:
            state = state - LOCAL * RATE * step.mean(0)
    nn.utils.vector_to_parameters(state, weights)
    with torch.no_grad():
        right = float((net(x[n:]).argmax(1) == label[n:]).double().mean())
    return right, n_bytes
