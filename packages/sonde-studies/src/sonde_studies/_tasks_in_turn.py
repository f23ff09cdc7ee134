"""Nets that learn pairs of digits one after another, by several rules."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sonde import training
from sonde.core import Constant, Ramp
from sonde.layers import Adapter, TargetHead
from sonde.train import Align, ScaledWeights, Scope, SubspaceProjection
from sonde_studies._described_digits import STROKES
from sonde_studies._recipe_data import mlp
from sonde_studies.worlds.learning import drawn

FIT, PAIRS, DECAY, RATE = 1_200, 5, 0.99, 0.1
OWN_RATE = {"plain, own rate": 0.05, "text": 0.003, "vectors": 0.003}
"""Of SGD: the best mean accuracy after all tasks, on seeds 100 to 102."""
PULL = {"slow teacher": Constant(1.0), "rising teacher": Ramp(0.4, 1.6, PAIRS - 2)}
"""Weight of the slow average's pull in each task after the first; both have mean 1."""
SCALED = ("scaled", "scaled at random")
GATED = {"gated": (0.5, 0.0), "cosine alone": (0.0, 0.0)}
GATED |= dict.fromkeys(("penalty", *SCALED), (0.5, 0.1))
"""The least share of a gradient along old inputs, and the weight of what admitted weights move."""
HELD, ADAPTED = ("projected", "random", *GATED), ("adapters", *PULL)
RULES = ("plain", *HELD, *ADAPTED, *OWN_RATE)
MOVING = ("2.*", "5.*", "6.*")
"""Adapters and head."""


def _net(rule: str) -> nn.Sequential:
    """Return a net whose last layer is learned, or compares with each digit's strokes."""
    net = mlp(64, 100)
    if rule in ADAPTED:
        one, relu, two, _, last = net
        return nn.Sequential(one, relu, Adapter(100, 16), two, nn.ReLU(), Adapter(100, 16), last)
    if rule in ("text", "vectors"):
        told = torch.tensor([[float(s in strokes) for s in "abcdefg"] for strokes in STROKES])
        told = told if rule == "text" else torch.randn(told.shape)
        net[-1] = TargetHead.of(told - told.mean(0), 100, temperature=0.1)
    return net


def learned_in_turn(
    rule: str, x: Tensor, label: Tensor, tasks: list[Tensor], seed: int, epochs: int
) -> dict[str, float]:
    """Return the mean accuracy at the end, right after each task, and the difference."""
    net = drawn(lambda: _net(rule), seed)
    share, weight = GATED.get(rule, (0.5, 0.0))
    memory = SubspaceProjection(0.97, admit=0.0 if rule in GATED else None, threshold=share)
    slow = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    first, last = torch.zeros(PAIRS), torch.zeros(PAIRS)
    scales: dict[int, ScaledWeights] = {}

    def scaled(task: int) -> AbstractContextManager[None]:
        return scales[task].on(net) if task in scales else nullcontext()

    def accuracy(task: int) -> float:
        rows = tasks[task].clone()
        rows[:FIT] = False
        classes = label[tasks[task]].unique()
        with scaled(task):
            said = classes[net(x[rows])[:, classes].argmax(1)]
        return float((said == label[rows]).double().mean())

    def cost(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(x[rows]), label[rows])

    for i in range(PAIRS):
        rows = torch.nonzero(tasks[i][:FIT]).flatten()
        batches = rows.split(16)
        agreement = memory.agreement(net, batches, cost) if i and rule in GATED else None
        if agreement and rule in SCALED:
            scales[i] = _scales(memory.scaled_weights(net, agreement), rule, seed + i)
        own = scales[i].parameters() if i in scales else ()
        optimiser: Any = torch.optim.SGD([*net.parameters(), *own], OWN_RATE.get(rule, RATE))
        with ExitStack() as stack:
            moved = None
            if i and rule in HELD:
                moved = stack.enter_context(memory.on(net, optimiser, agreement))
            stack.enter_context(scaled(i))
            if i and rule in ADAPTED:
                stack.enter_context(Scope("pattern", patterns=MOVING).on(net))
            pull = None
            if i and rule in PULL:
                weight_now = PULL[rule].weight(i - 1)
                terms = training(
                    net, {("5", "teacher:5"): Align()}, weight=weight_now, teacher=slow
                )
                pull = stack.enter_context(terms)
            _learn(optimiser, [*batches] * epochs, cost, pull, moved, weight)
        if rule in HELD:
            with scaled(i):
                given = batches if rule in GATED else [x[rows]]
                _remember(memory, rule, net, given, cost, seed + i)
        first[i] = accuracy(i)
    for i in range(PAIRS):
        last[i] = accuracy(i)
    return {
        "average": float(last.mean()),
        "new": float(first.mean()),
        "backward": fmean((last - first)[:-1].tolist()),
    }


def _learn(
    optimiser: Any, batches: list[Tensor], cost: Any, pull: Any, moved: Any, weight: float
) -> None:
    """Take a step on each batch, with the pull of a teacher and the price of moved weights."""
    for part in batches:
        optimiser.zero_grad()
        loss = cost(part) + (0.0 if pull is None else pull.loss())
        if moved is not None:
            loss = loss + weight * moved()
        loss.backward()
        optimiser.step()
        if pull is not None:
            pull.step()


def _scales(scaled: ScaledWeights, rule: str, seed: int) -> ScaledWeights:
    """Return the scaled weights; for their null arm, along as many random directions."""
    if rule == "scaled at random":
        draw = torch.Generator().manual_seed(seed)
        for scale in scaled.scales:
            basis = scale.get_buffer("basis")
            some = torch.randn(basis.shape, generator=draw, dtype=torch.float64)
            basis.copy_(torch.linalg.qr(some)[0])
    return scaled


def _remember(
    memory: SubspaceProjection, rule: str, net: nn.Module, data: Any, cost: Any, seed: int
) -> None:
    """Store a task's input directions; for the null arm, random directions."""
    memory.remember(net, data, cost if rule in GATED else None)
    if rule == "random":
        draw = torch.Generator().manual_seed(seed)
        memory.known = {
            name: torch.linalg.qr(torch.randn(basis.shape, generator=draw).double())[0]
            for name, basis in memory.known.items()
        }
