"""Test whether a weight edit writes one fact, in other phrasings and without side effects.

A toy: a net of three layers that was told facts of three words. Members of a family share an
answer, so the other members of an edited one's family are the nearest neighbours that there are.
"""

from collections.abc import Callable
from statistics import fmean
from typing import final

import numpy as np

from sonde import Model
from sonde_studies._fact_edits import (
    FIRST,
    Edits,
    batch,
    edits_of,
    family_of,
    fitted_on_facts,
    judged,
    parts_of,
    rank_one,
    rewritten,
    told_new,
)
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    Schooling,
    asked,
    facts_and_model,
)

FAMILIES, NEAR, FAR, PART = 2, 6, 100, 5


@final
class RewriteFactsStudy(Study):
    """Edits of one fact in each large family, among facts that the net knows with certainty."""

    name = "rewrite-facts"
    title = "does an edit write a fact in other words too, and leave its neighbours alone?"
    paper = "meng2022rome"
    fidelity = (
        "toy-size: facts of three words, nets of 3 layers; edits of the last MLP at the last token "
        "of the prompt, because at that of the subject no layer takes them here; no prefixes; the "
        "layer and the longer search were chosen by how many edits of seed 0 take"
    )
    data = f"facts of {FAMILIES * 7} families, of which one member is edited in each of 5 or more"
    claims = (
        Claim(
            "efficacy",
            "After one edit of rank one the net gives the new answer.",
            "share of edits",
            above=0.9,
        ),
        Claim(
            "place",
            "It does so rather at the last token of the subject, in the first layer, than here.",
            "share of edits, difference",
            arms=("rank one, subject", "rank one"),
        ),
        Claim(
            "paraphrase",
            "It also does in the other phrase.",
            "share of edits",
            above=0.5,
        ),
        Claim(
            "neighbours",
            "Other members of the family keep more answers, after 50 steps for one vector of "
            "parameters, than by training all parameters on the new fact in fewer steps.",
            "share of answers kept, difference",
            arms=("rank one", "trained"),
        ),
        Claim(
            "at once",
            "Of many facts more hold written at once, as vectors of parameters found in one run "
            "of steps, than one after another by edits of rank one.",
            "share of edits, difference",
            arms=("least_squares, at once", "rank one, in turn"),
        ),
        Claim(
            "null space keeps",
            "Written in parts, changes in the null space keep more other facts than least squares.",
            "share of answers kept, difference",
            arms=("null_space, in parts", "least_squares, in parts"),
        ),
        Claim(
            "null space writes",
            "They write as many of the new ones, less .05.",
            "share of edits, difference",
            above=-0.05,
            arms=("null_space, in parts", "least_squares, in parts"),
        ),
    )
    null = Claim(
        "own answer",
        "An edit to the answer that the net gives already changes no other answer.",
        "share of neighbours' answers that change",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net on the facts, edit some, singly or together, and query all."""
        tick("telling a net the facts")
        families, steps = (1, 20) if tiny else (FAMILIES, Schooling.steps)
        world, model = facts_and_model(seed, families, Schooling(steps=steps))
        said = asked(model, list(world.facts))
        sure = [f for f, own in said.items() if tiny or set(own) == {f.answer}]
        draw = np.random.default_rng(seed)
        edits = edits_of(sure, draw, 2 if tiny else None)
        near = {
            f: [g for g in sure if family_of(g) == family_of(f) and g != f][:NEAR] for f in edits
        }
        touched = {family_of(f) for f in edits}
        far = [f for f in sure if family_of(f) not in touched][:FAR] or sure[-1:]
        fitted = fitted_on_facts(model, list(world.facts))

        def alone(change: Callable[[Edits], Model]) -> dict[str, float]:
            found = [judged(change({f: new}), {f: new}, near[f], said) for f, new in edits.items()]
            return {name: fmean(one[name] for one in found) for name in found[0]}

        tick("editing facts one by one")
        arms = dict[str, dict[str, float]]()
        ways: dict[str, Callable[[Edits], Model]] = {
            "rank one": lambda one: rewritten(model, fitted, rank_one(one)),
            "rank one, subject": lambda one: rewritten(
                model, fitted, rank_one(one, FIRST, whole=False)
            ),
            "trained": lambda one: told_new(model, one, seed),
        }
        for name, change in ways.items():
            with part(name):
                arms[name] = alone(change)
        own = alone(lambda one: rewritten(model, fitted, rank_one({f: said[f][0] for f in one})))
        tick("editing many")
        batches = {"at once": [edits], "in parts": parts_of(edits, PART)}
        for how in ("least_squares", "null_space"):
            for name, parts in batches.items():
                with part(f"{how}, {name}"):
                    changed = rewritten(model, fitted, *(batch(some, how) for some in parts))
                arms[f"{how}, {name}"] = judged(changed, edits, far, said)
        turns = [rank_one({f: new}) for f, new in edits.items()]
        with part("rank one, in turn"):
            changed = rewritten(model, fitted, *turns)
        arms["rank one, in turn"] = judged(changed, edits, far, said)
        return {
            "efficacy": arms["rank one"]["new answer"],
            "place": arms["rank one, subject"]["new answer"] - arms["rank one"]["new answer"],
            "paraphrase": arms["rank one"]["in the other phrase"],
            "neighbours": arms["rank one"]["kept"] - arms["trained"]["kept"],
            "at once": arms["least_squares, at once"]["new answer"]
            - arms["rank one, in turn"]["new answer"],
            "null space keeps": arms["null_space, in parts"]["kept"]
            - arms["least_squares, in parts"]["kept"],
            "null space writes": arms["null_space, in parts"]["new answer"]
            - arms["least_squares, in parts"]["new answer"],
            "own answer": 1 - own["kept"],
            "facts that the net is sure of": len(sure) / len(world.facts),
            "edits": float(len(edits)),
            **{f"{arm} | {k}": v for arm, found in arms.items() for k, v in found.items()},
        }
