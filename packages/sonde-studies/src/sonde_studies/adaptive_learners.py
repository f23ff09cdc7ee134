"""Modules replaced by sums of learners: the effect of the budget on answers and on time.

A perceptron over digits whose hidden module, through which all passes, is replaced; noisy digits
are harder than clean ones.
"""

from copy import deepcopy
from math import log
from statistics import median
from time import process_time
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.compress import AdaptiveModules
from sonde.data import open_inputs
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

FIT, MORE, STEPS, TINY, LEARNERS, WIDTH, HELD = 800, 400, 300, 5, 4, 16, slice(1_200, None)
BUDGETS = (0.25, 0.75)
COPIES, ROUNDS = 20, 40


@final
class AdaptiveLearnersStudy(Study):
    """Four learners in place of a module, at budgets of one learner and of three."""

    name = "adaptive-learners"
    title = "does it pay to let each row choose how many learners it runs?"
    paper = "wojcik2023acm"
    fidelity = "one module of a perceptron in place of all modules of a transformer"
    data = "digits, half of them under noise; 800 to train on, 400 to distil on, 597 to judge"
    claims = (
        Claim("met", "At a quarter of the learners the budget is met to a fifth of it.",
              "0.05 less the distance of the learners that ran from a quarter of them"),
        Claim("curve", "Three quarters of the learners leave less divergence than a quarter.",
              "nats, a quarter less three quarters"),
        Claim("gate", "Rows that choose do better than as many learners for all of them.",
              "nats at a quarter, the same number by lot less chosen"),
        Claim("harder", "Noisy rows run more learners than clean ones.",
              "share of the learners that ran, noisy less clean, at a quarter"),
        Claim("seconds", "At a quarter the gated learners take less time than all learners.",
              "log of processor time, all learners by gated ones, in turns"),
        Claim("seconds of the module", "And less than the module that they replace.",
              "log of processor time, module by gated learners, in turns"),
    )  # fmt: skip
    null = Claim("lots", "Numbers dealt to rows by two lots do alike.",
                 "nats at a quarter, one lot less another")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, replace its module at both budgets, and evaluate."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        noisy = torch.rand(len(x), generator=draw) < 0.5
        x = torch.where(noisy[:, None], x + 0.4 * torch.randn(x.shape, generator=draw), x)
        net = drawn(_Net, seed)
        tick("train")
        learn_labels(net, x[:FIT], label[:FIT], steps=TINY if tiny else STEPS, seed=seed)
        model, more = Model(net), slice(FIT, FIT + MORE)
        inputs = open_inputs(model, items_of(x[more], label[more]))
        found = dict[str, float]()
        with torch.no_grad():
            wanted = net(x[HELD]).log_softmax(1)
        for budget in BUDGETS:
            tick(f"learners, {budget:.0%}")
            rule = AdaptiveModules(
                ["mlp"], LEARNERS, budget, steps=TINY if tiny else STEPS, rate=3e-3, seed=seed
            )
            made = rule.fit(model, inputs).module
            gate: Any = made.get_submodule("mlp")
            cost = _diverges(wanted, made, x[HELD])
            number = gate.number
            found[f"nats | {budget:.0%}"] = cost
            found[f"ran | {budget:.0%}"] = float(number.double().mean()) / LEARNERS
            for kind, rows in (("noisy", noisy[HELD]), ("clean", ~noisy[HELD])):
                found[f"ran, {kind} | {budget:.0%}"] = float(
                    number[rows].double().mean() / LEARNERS
                )
            for lot in ("a lot", "another lot"):
                dealt = number[torch.randperm(len(number), generator=draw)]
                found[f"nats, {lot} | {budget:.0%}"] = _dealt(wanted, made, gate, x[HELD], dealt)
            tick(f"time, {budget:.0%}")
            spent = _seconds(net, gate, x[HELD].repeat(1 if tiny else COPIES, 1))
            found |= {f"us a row, {way} | {budget:.0%}": v for way, v in spent.items()}
        few, many = (f"{budget:.0%}" for budget in BUDGETS)
        gated = found[f"us a row, gated | {few}"]
        return {
            "met": 0.05 - abs(found[f"ran | {few}"] - BUDGETS[0]),
            "curve": found[f"nats | {few}"] - found[f"nats | {many}"],
            "gate": found[f"nats, a lot | {few}"] - found[f"nats | {few}"],
            "harder": found[f"ran, noisy | {few}"] - found[f"ran, clean | {few}"],
            "lots": found[f"nats, a lot | {few}"] - found[f"nats, another lot | {few}"],
            "seconds": log(found[f"us a row, all | {few}"] / gated),
            "seconds of the module": log(found[f"us a row, module | {few}"] / gated),
            **found,
        }


class _Net(nn.Module):
    """A perceptron with one module that can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96), nn.ReLU(), nn.Linear(96, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mlp(self.first(x).relu()).relu())


@torch.no_grad()
def _seconds(net: _Net, gate: Any, x: Tensor) -> dict[str, float]:
    """Return the median processor time a row of module, gated and all learners, in turns."""
    gate.probs, gate.cost = None, gate.cost.detach()  # no graph to copy
    full, h = deepcopy(gate), net.first(x).relu()
    full.gate.weight.zero_()
    full.gate.bias.copy_(torch.arange(LEARNERS + 1.0))
    ways = {"module": net.mlp, "gated": gate, "all": full}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, module in ways.items():
            start = process_time()
            module(h)
            spent[way].append(process_time() - start)
    return {way: 1e6 * median(times) / len(x) for way, times in spent.items()}


@torch.no_grad()
def _diverges(wanted: Tensor, net: nn.Module, x: Tensor) -> float:
    """Return the mean divergence of the answers, in nats."""
    return float((wanted.exp() * (wanted - net(x).log_softmax(1))).sum(1).mean())


@torch.no_grad()
def _dealt(wanted: Tensor, net: nn.Module, gate: Any, x: Tensor, number: Tensor) -> float:
    """Return the divergence if each row uses a given number of learners."""

    def picked(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return gate.partial(args[0])[torch.arange(len(number)), number]

    handle = gate.register_forward_hook(picked)
    try:
        return _diverges(wanted, net, x)
    finally:
        handle.remove()
