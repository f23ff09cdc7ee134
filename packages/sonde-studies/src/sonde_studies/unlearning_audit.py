"""Test whether unlearning that only silences an answer leaves the class in the states.

A small conv net on digits is to forget the class 3: by turning one answer off, by wrong labels, by
a rising loss. The gold model is trained without the class, from the same first weights. Nets of
this size learn features that tell unseen digits apart as well, so the gold model is the control.
New heads judge the states of every net, on the same test digits. A small language model is to
forget facts of persons: by wrong answers, and by training without them. A net on a table is to
forget the rows of some patients.
"""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, final

from sonde import Model
from sonde.data import open_inputs
from sonde.edit import GradientAscent, RandomLabel
from sonde.report import Answer
from sonde_studies._facts_in_context import facts_in_context
from sonde_studies._forgetting import CLASS, few_of_each, silenced, steps_to_relearn, trained, world
from sonde_studies._patients import forgotten_patients
from sonde_studies.arms import note_again, part
from sonde_studies.parts.traces import SHOTS
from sonde_studies.recipes.unlearning_audit import unlearning_audit
from sonde_studies.study import Claim, Figures, Study, Tick


@final
class UnlearningAuditStudy(Study):
    """Four ways to forget one class of digits, audited by the recipe."""

    name = "unlearning-audit"
    title = "does the audit tell a silenced class from a forgotten one?"
    fidelity = (
        "of the checks that the papers ask for: answers, states against a model that never saw the "
        "class, steps to learn it again, side effects; recovery in context on a made language"
    )
    data = (
        "digits: 1,200 to train on, the others to audit on, class 3 to be forgotten; planted facts "
        "of 72 persons: a third to be forgotten, a third to be kept, a third never told; "
        "442 diabetes patients: 60 to be forgotten, 200 to be kept, the others never seen"
    )
    claims = (
        Claim("traces", "Turning the answer off leaves the class in the states.",
              "balanced accuracy of new heads, answer off less gold, which never saw the class's "
              "rows",
              arms=("answer off", "gold")),
        Claim("less", "Forgetting by wrong labels, in ten more epochs, leaves fewer traces than "
              "turning the answer off.",
              "balanced accuracy of new heads, answer off less wrong labels",
              arms=("answer off", "wrong labels")),
        Claim("cost", "Wrong labels cost the other classes more than 2 points.",
              "accuracy on the other classes lost, less 0.02"),
        Claim("relearned", "A model whose answer is off relearns the class sooner than the gold, "
              "which never saw the class's rows.",
              "training steps on 8 rows of each class, gold less answer off",
              arms=("answer off", "gold")),
        Claim("facts", "Wrong answers, taught in 100 more steps, weaken an attack by low loss on "
              "facts of persons by more than 0.2.",
              "AUROC before less after, less 0.2",
              arms=("facts, before", "facts, unlearned")),
        Claim("in context", "With a fact in the prompt, a model made to forget it by wrong "
              "answers, taught in 100 more steps, gives it about as often as before.",
              "accuracy after less before, and 0.05",
              arms=("facts, unlearned", "facts, before")),
        Claim("exact", "With a fact in the prompt, a model never told it gives it about as often "
              "as one that was.", "accuracy without the fact less with it, trained in as many "
              "steps, and 0.05",
              arms=("facts, never told", "facts, before")),
        Claim("own", "That is due to the fact: two other persons' facts do not bring it back.",
              "accuracy of the model never told, own fact less two others, less 0.5",
              arms=("facts, own fact", "facts, two others")),
        Claim("patients", "An attack by low loss finds patients whose rows a net learned.",
              "AUROC less 0.6"),
        Claim("hidden", "After wrong labels it tells them from unseen patients by 0.1 at most.",
              "0.1 less distance of the AUROC from 0.5"),
    )  # fmt: skip
    null = Claim("no rate", "Wrong answers at a rate of nearly 0 leave the traces that there were.",
                 "balanced accuracy of new heads, before less after")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, forget in four ways, and audit each."""
        tick("train")
        with part("before"):
            model, images, label, n = world(seed, tiny)
        rest = label[:n] != CLASS
        with part("gold"):
            gold = Model(trained(images[:n][rest], label[:n][rest], seed, seed + 100))
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
        after = _forgotten(model, inputs, 2 if tiny else 10, seed)
        tick("audit")

        def audit(net: Model) -> Answer:
            return unlearning_audit(model, net, own, others, gold=gold, seed=seed, progress=False)

        found = {name: audit(m) for name, m in after.items()}
        rows = {name: {r["model"]: r for r in answer.rows} for name, answer in found.items()}
        heads = {
            k: {name: row[f"new head, {k} shown"] for name, row in _of_nets(rows).items()}
            for k in SHOTS
        }
        traces = {name: fmean(h[name] for h in heads.values()) for name in heads[SHOTS[0]]}
        kept = {k: r["after"]["retain accuracy"] for k, r in rows.items()}
        was = rows["answer off"]["before"]["retain accuracy"]
        tick("learn again")
        few = few_of_each(label[:n], 8)
        shown, unseen = (images[few], label[few]), (images[fresh], label[fresh])
        nets = {"before": model, "gold": gold, **after}
        steps = {k: float(steps_to_relearn(m.module, shown, unseen)) for k, m in nets.items()}
        return {
            "relearned": steps["gold"] - steps["answer off"],
            **{f"training steps | {k}": v for k, v in steps.items()},
            **_of_persons(seed, tiny, tick),
            "traces": traces["answer off"] - traces["gold"],
            "less": traces["answer off"] - traces["wrong labels"],
            "cost": was - kept["wrong labels"] - 0.02,
            "no rate": traces_lost(model, inputs, 1e-12, seed, audit),
            **{f"new head, {k} shown | {name}": v
               for k, row in heads.items() for name, v in row.items()},
            **{f"traces | {k}": v for k, v in traces.items()},
            **{f"old head, beyond gold | {k}": float(a.value) for k, a in found.items()},
            **{f"forget accuracy | {k}": r["after"]["forget accuracy"] for k, r in rows.items()},
            **{f"retain accuracy | {k}": v for k, v in kept.items()},
        }  # fmt: skip


def _forgotten(model: Model, inputs: Mapping[str, Any], epochs: int, seed: int) -> dict[str, Model]:
    """Return the model after each way to forget the class."""
    rules: dict[str, RandomLabel | GradientAscent] = {
        "wrong labels": RandomLabel(epochs=epochs, seed=seed),
        "rising loss": GradientAscent(rate=1e-3, epochs=epochs, seed=seed),
    }
    after = dict[str, Model]()
    for name, rule in rules.items():
        note_again(name, "before")
        with part(name):
            after[name] = Model(rule.plan(model, inputs).fold(model))
    note_again("answer off", "before")
    return after | {"answer off": Model(silenced(model.module))}


def traces_lost(
    model: Model,
    inputs: Mapping[str, Any],
    rate: float,
    seed: int,
    audit: Callable[[Model], Answer],
) -> float:
    """Return the traces of a class before wrong answers are taught at a rate, less those after."""
    plan = RandomLabel(rate=rate, epochs=1, seed=seed).plan(model, inputs)
    rows = {row["model"]: row for row in audit(Model(plan.fold(model))).rows}
    names = [f"new head, {k} shown" for k in SHOTS]
    return fmean(float(rows["before"][n]) - float(rows["after"][n]) for n in names)


def _of_nets(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return each net's row of the audits; all audits have the same net before and gold."""
    first = next(iter(rows.values()))
    after = {name: row["after"] for name, row in rows.items()}
    return {"before": first["before"], "gold": first["control"], **after}


def _of_persons(seed: int, tiny: bool, tick: Tick) -> dict[str, float]:
    """Return the results on facts of persons and on rows of patients."""
    tick("facts in a prompt")
    facts = facts_in_context(seed, tiny)
    tick("patients")
    rows = forgotten_patients(seed, tiny)
    return {
        "facts": facts["audit | before"] - facts["audit | unlearned"] - 0.2,
        "in context": facts["own | unlearned"] - facts["own | before"] + 0.05,
        "exact": facts["own | never told"] - facts["own | before"] + 0.05,
        "own": facts["own | never told"] - facts["other | never told"] - 0.5,
        "patients": rows["audit | before"] - 0.6,
        "hidden": 0.1 - abs(rows["audit | wrong labels"] - 0.5),
        **{f"facts {k}": v for k, v in facts.items()},
        **{f"patients {k}": v for k, v in rows.items()},
    }
