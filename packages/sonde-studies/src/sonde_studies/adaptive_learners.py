"""Modules replaced by sums of learners: the effect of the budget on answers and on time.

A net reads two digits and a request: name the first digit, which hardly needs the module that is
replaced, or look the pair up in a table of a hundred random entries, which the module holds.
"""

from math import log
from typing import Any, final

import torch

from sonde import Model
from sonde.compress import AdaptiveModules
from sonde.data import open_inputs
from sonde_studies._learner_counts import microseconds, nats_if_dealt, nats_of, with_number_for_all
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies._table_of_digits import digit_table, needs_table, requests_of, table_net
from sonde_studies.arms import note, note_again, note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, PAIRS, MORE, HELD, STEPS, DISTIL, TINY = 1_200, 20_000, 4_096, 2_000, 2_000, 500, 4
LEARNERS, ALIKE, RATE, WEIGHTS = 8, 2, 3e-3, (6.0, 0.05, 0.0)
BUDGETS = (0.2, 0.4, 0.8)
COPIES, ROUNDS = 10, 40
LOTS = ("nats, by lot | 20%", "nats, two for each row | 25%")
OWN = "nats, as chosen | 20%"


@final
class AdaptiveLearnersStudy(Study):
    """Eight learners in place of a module, at three budgets."""

    name = "adaptive-learners"
    title = "does it pay to let each row choose how many learners it runs?"
    paper = "wojcik2023acm"
    fidelity = "one module of a small net in place of all modules of a transformer"
    data = "pairs of digits: 1,200 digits to train and distil on, 597 to judge; a table by lot"
    claims = (
        Claim("met", "Budgets of one, two and four fifths of the learners are met to five points.",
              "0.05 less the largest distance of the learners that ran from the budget"),
        Claim("curve", "Each larger budget leaves less divergence.",
              "log of the ratio of divergences, the smaller of two steps",
              arms=("learners, 80%", "learners, 20%")),
        Claim("several", "Four fifths of the learners leave at most half of what one fifth leaves.",
              "log of the divergence at one fifth over that at four fifths", log(2),
              arms=("learners, 80%", "learners, 20%")),
        Claim("gate", "Rows that choose do better than the same numbers dealt by lot.",
              "nats at one fifth, by lot less chosen",
              arms=("learners, 20%", "by lot, 20%")),
        Claim("alike",
              "And better than two learners for every row, with a third more updates.",
              "nats at one fifth, two for each row less chosen",
              arms=("learners, 20%", "two for each row")),
        Claim("harder", "Rows that need the table run more learners than the others.",
              "share of the learners that ran, table less first digit, at one fifth",
              arms=("rows of the table", "rows of the first digit")),
        Claim("seconds", "At one fifth the gated learners take less time than all learners.",
              "log of processor time, all learners by gated ones, in turns"),
        Claim("seconds of the module", "And less than the module that they replace.",
              "log of processor time, module by gated learners, in turns"),
    )  # fmt: skip
    null = Claim("own", "Dealt to each row as it chose, numbers do as well as if it chooses.",
                 "nats at one fifth, dealt less chosen")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, replace its module at each budget, and evaluate."""
        digits, label = shuffled_digits(seed)
        draw, table = torch.Generator().manual_seed(seed), digit_table(seed)
        x, y = requests_of(digits[:FIT], label[:FIT], table, PAIRS, draw)
        held, _ = requests_of(digits[FIT:], label[FIT:], table, HELD, draw)
        tick("train")
        net = table_net(x, y, seed, TINY if tiny else STEPS)
        hard, steps, found = needs_table(held), TINY if tiny else DISTIL, dict[str, float]()
        model = Model(net)
        inputs = open_inputs(model, items_of(x[:MORE], y[:MORE]))
        note_for("rows of the table", rows=int(hard.sum()))
        note_for("rows of the first digit", rows=int((~hard).sum()))
        for budget in BUDGETS:
            tick(f"learners, {budget:.0%}")
            rule = AdaptiveModules(
                ["mlp"], LEARNERS, budget, steps=steps, rate=RATE, weights=WEIGHTS, seed=seed
            )
            made = rule.fit(model, inputs).module
            note(rows=MORE)
            found[f"nats | {budget:.0%}"] = nats_of(net, made, held)
            gate: Any = made.get_submodule("mlp")
            number = gate.number
            for kind, rows in (("ran", hard | True), ("table", hard), ("first digit", ~hard)):
                found[f"{kind} | {budget:.0%}"] = float(number[rows].double().mean()) / LEARNERS
            if budget == BUDGETS[0]:
                for name in ("by lot, 20%", "two for each row"):
                    note_again(name, f"learners, {budget:.0%}")
                tick("other numbers, time")
                lot = nats_if_dealt(net, made, held, number[torch.randperm(HELD, generator=draw)])
                found[OWN] = nats_if_dealt(net, made, held, number)
                with part("two for each row"):
                    alike = with_number_for_all(net, made, x[:MORE], ALIKE, steps, seed)
                found |= dict(zip(LOTS, [lot, nats_of(net, alike, held)], strict=True))
                states = net.norm(net.states(held)).repeat(1 if tiny else COPIES, 1).detach()
                spent = microseconds(net.mlp, gate, states, ROUNDS)
                found |= {f"us a row | {way}": v for way, v in spent.items()}
        return _claims(found) | found


def _claims(found: dict[str, float]) -> dict[str, float]:
    """Return the figures of the claims from those of the arms."""
    few, half, many = (found[f"nats | {budget:.0%}"] for budget in BUDGETS)
    lot, alike = (found[name] for name in LOTS)
    module, gated, every = (found[f"us a row | {way}"] for way in ("module", "gated", "all"))
    return {
        "met": 0.05 - max(abs(found[f"ran | {b:.0%}"] - b) for b in BUDGETS),
        "curve": min(log(few / half), log(half / many)),
        "several": log(few / many),
        "gate": lot - few,
        "alike": alike - few,
        "harder": found["table | 20%"] - found["first digit | 20%"],
        "own": round(found[OWN] - few, 6),  # of single precision
        "seconds": log(every / gated),
        "seconds of the module": log(module / gated),
    }
