"""Modules replaced by sums of learners: the effect of the budget on accuracy.

A perceptron over digits whose hidden module is replaced; noisy digits are harder than clean ones.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.compress import AdaptiveModules
from sonde.data import open_inputs
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

FIT, MORE, STEPS, TINY, LEARNERS, WIDTH, HELD = 800, 400, 300, 5, 4, 48, slice(1_200, None)
BUDGETS = (0.25, 0.75)


@final
class AdaptiveLearnersStudy(Study):
    """Four learners in place of a module, at budgets of one learner and of three."""

    name = "adaptive-learners"
    title = "does it pay to let each row choose how many learners it runs?"
    paper = "wojcik2023acm"
    fidelity = "one module of a perceptron in place of all modules of a transformer"
    data = "digits, half of them under noise; 800 to train on, 400 to distil on, 597 to judge"
    claims = (
        Claim("met", "At a quarter of the learners the budget is met to a tenth.",
              "0.1 less the distance of the learners that ran from a quarter of them"),
        Claim("curve", "Three quarters of the learners leave less divergence than a quarter.",
              "nats, a quarter less three quarters"),
        Claim("gate", "Rows that choose do better than as many learners for all of them.",
              "nats at a quarter, the same number by lot less chosen"),
        Claim("harder", "Noisy rows run more learners than clean ones.",
              "share of the learners that ran, noisy less clean, at a quarter"),
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
        few, many = (f"{budget:.0%}" for budget in BUDGETS)
        return {
            "met": 0.1 - abs(found[f"ran | {few}"] - BUDGETS[0]),
            "curve": found[f"nats | {few}"] - found[f"nats | {many}"],
            "gate": found[f"nats, a lot | {few}"] - found[f"nats | {few}"],
            "harder": found[f"ran, noisy | {few}"] - found[f"ran, clean | {few}"],
            "lots": found[f"nats, a lot | {few}"] - found[f"nats, another lot | {few}"],
            **found,
        }


class _Net(nn.Module):
    """A perceptron with one residual module that can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96), nn.ReLU(), nn.Linear(96, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last((h + self.mlp(h)).relu())


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
