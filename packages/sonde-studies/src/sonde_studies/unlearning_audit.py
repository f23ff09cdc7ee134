"""Test whether unlearning that only silences an answer leaves the class in the states.

A small conv net on digits is to forget the class 3: by turning one answer off, by wrong labels, by
a rising loss. The gold model is trained without the class. Nets of this size learn features that
tell unseen digits apart as well, which is why the gold model is the control.
"""

from copy import deepcopy
from typing import final

import torch
from torch import nn

from sonde import Model
from sonde.data import open_inputs
from sonde.edit import GradientAscent, RandomLabel
from sonde_studies._forgetting import CLASS, trained, world
from sonde_studies.recipes.unlearning_audit import unlearning_audit
from sonde_studies.study import Claim, Figures, Study, Tick


@final
class UnlearningAuditStudy(Study):
    """Four ways to forget one class of digits, audited by the recipe."""

    name = "unlearning-audit"
    title = "does the audit tell a silenced class from a forgotten one?"
    fidelity = (
        "of the checks that the papers ask for: answers, states against a model that never saw the "
        "class, examples to learn it again, side effects; not: recovery in context, text"
    )
    data = "digits: 1,200 to train on, the others to audit on; class 3 is to be forgotten"
    claims = (
        Claim(
            "traces",
            "Turning the answer off leaves the class in the states.",
            "accuracy of a head of the states before, beyond that on the gold model, less 0.2",
        ),
        Claim(
            "less",
            "Forgetting by wrong labels leaves fewer traces than turning the answer off.",
            "accuracy of a head of the states before, answer off less wrong labels",
        ),
        Claim(
            "cost",
            "Wrong labels cost the other classes more than 2 points.",
            "accuracy on the other classes lost, less 0.02",
        ),
    )
    null = Claim(
        "anew",
        "A second model that never saw the class leaves no traces beyond the first.",
        "accuracy of a head of the states before, beyond that on the first such model",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, forget in four ways, and audit each."""
        tick("train")
        model, images, label, n = world(seed, tiny)
        rest = label[:n] != CLASS
        gold, anew = (
            Model(trained(images[:n][rest], label[:n][rest], s)) for s in (seed + 100, seed + 200)
        )
        seen = [{"input": x, "label": int(c)} for x, c in zip(images[:n], label[:n], strict=True)]
        fresh = slice(n, 2 * n if tiny else None)
        new = [
            {"input": x, "label": int(c)} for x, c in zip(images[fresh], label[fresh], strict=True)
        ]
        own, others = ([r for r in new if (r["label"] == CLASS) == s] for s in (True, False))
        tick("forget")
        sides = {
            name: [r for r in seen if (r["label"] == CLASS) == (name == "forget")]
            for name in ("forget", "retain")
        }
        inputs = {name: open_inputs(model, rows) for name, rows in sides.items()}
        epochs = 2 if tiny else 10
        plans = {
            "wrong labels": RandomLabel(epochs=epochs, seed=seed).plan(model, inputs),
            "rising loss": GradientAscent(rate=1e-3, epochs=epochs, seed=seed).plan(model, inputs),
        }
        after = {name: Model(plan.fold(model)) for name, plan in plans.items()}
        after |= {"answer off": Model(silenced(model.module)), "trained anew": anew}
        tick("audit")
        found = {
            name: unlearning_audit(model, m, own, others, gold=gold, seed=seed, progress=False)
            for name, m in after.items()
        }
        traces = {name: float(answer.value) for name, answer in found.items()}
        rows = {name: {r["model"]: r for r in answer.rows} for name, answer in found.items()}
        kept = {k: r["after"]["retain accuracy"] for k, r in rows.items()}
        was = rows["answer off"]["before"]["retain accuracy"]
        return {
            "traces": traces["answer off"] - 0.2,
            "less": traces["answer off"] - traces["wrong labels"],
            "cost": was - kept["wrong labels"] - 0.02,
            "anew": traces["trained anew"],
            "few | answer off": rows["answer off"]["after"]["new head, 4 shown"],
            "few | trained anew": rows["answer off"]["control"]["new head, 4 shown"],
            **{f"traces | {k}": v for k, v in traces.items()},
            **{f"forget accuracy | {k}": r["after"]["forget accuracy"] for k, r in rows.items()},
            **{f"retain accuracy | {k}": v for k, v in kept.items()},
        }


def silenced(module: nn.Module) -> nn.Module:
    """Return a copy of a net that never answers the class; its states are unchanged."""
    copy = deepcopy(module)
    head = [m for m in copy.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.bias[CLASS] -= 1e3
    return copy
