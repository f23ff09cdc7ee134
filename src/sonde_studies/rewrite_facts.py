"""Does an edit of a layer's weights write one fact: in other words too, and beside its neighbours.

A toy: a net of three layers that was told facts of three words. Members of a family share an
answer, so the other members of an edited one's family are the nearest neighbours that there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, final

import numpy as np

import sonde
from sonde import Model
from sonde.edit import BatchEdit, Fact, NullSpace, RankOneEdit, SecondMoment
from sonde.weights import Rewrite
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    ANSWERS,
    PHRASES,
    Entry,
    Schooling,
    asked,
    facts_and_model,
    popular,
    told_more,
)

FIRST, LAYER = "transformer.h.0.mlp.c_proj", "transformer.h.2.mlp.c_proj"
FAMILIES, LEAST, NEAR, FAR, PART = 2, 5, 6, 100, 5
MORE = 15
SEARCH: dict[str, Any] = {"prefixes": ("",), "steps": 50, "largest": 12.0}
Edits = dict[Entry, str]


@final
class RewriteFactsStudy(Study):
    """Facts of which a net is sure, one in each large family, are given another answer."""

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
        ),
        Claim(
            "paraphrase",
            "It also does in the other phrase.",
            "share of edits",
            above=0.5,
        ),
        Claim(
            "neighbours",
            "Other members of the family keep more answers than by training on the new fact.",
            "share of answers kept, difference",
        ),
        Claim(
            "at once",
            "Of many facts more hold written at once than one after another by edits of rank one.",
            "share of edits, difference",
        ),
        Claim(
            "null space keeps",
            "Written in parts, changes in the null space keep more other facts than least squares.",
            "share of answers kept, difference",
        ),
        Claim(
            "null space writes",
            "They write as many of the new ones, less .05.",
            "share of edits, difference",
            above=-0.05,
        ),
    )
    null = Claim(
        "own answer",
        "An edit to the answer that the net gives already changes no other answer.",
        "share of neighbours' answers that change",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Tell a net the facts, edit some, one alone or many, and ask for all."""
        tick("telling a net the facts")
        families, steps = (1, 20) if tiny else (FAMILIES, Schooling.steps)
        world, model = facts_and_model(seed, families, Schooling(steps=steps))
        said = asked(model, list(world.facts))
        sure = [f for f, own in said.items() if tiny or set(own) == {f.answer}]
        draw = np.random.default_rng(seed)
        edits = _edits(sure, draw, 2 if tiny else None)
        near = {f: [g for g in sure if _family(g) == _family(f) and g != f][:NEAR] for f in edits}
        touched = {_family(f) for f in edits}
        far = [f for f in sure if _family(f) not in touched][:FAR] or sure[-1:]
        fitted = _fitted(model, list(world.facts))

        def alone(change: Callable[[Edits], Model]) -> dict[str, float]:
            found = [_judged(change({f: new}), {f: new}, near[f], said) for f, new in edits.items()]
            return {name: fmean(one[name] for one in found) for name in found[0]}

        tick("editing facts one by one")
        arms = {
            "rank one": alone(lambda one: _rewritten(model, fitted, _rank_one(one))),
            "rank one, subject": alone(
                lambda one: _rewritten(model, fitted, _rank_one(one, FIRST, whole=False))
            ),
            "trained": alone(lambda one: _trained(model, one, seed)),
        }
        own = alone(lambda one: _rewritten(model, fitted, _rank_one({f: said[f][0] for f in one})))
        tick("editing many")
        batches = {"at once": [edits], "in parts": _parts(edits, PART)}
        for how in ("least_squares", "null_space"):
            for name, parts in batches.items():
                changed = _rewritten(model, fitted, *(_batch(part, how) for part in parts))
                arms[f"{how}, {name}"] = _judged(changed, edits, far, said)
        turns = [_rank_one({f: new}) for f, new in edits.items()]
        arms["rank one, in turn"] = _judged(_rewritten(model, fitted, *turns), edits, far, said)
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


def _family(fact: Entry) -> tuple[str, int]:
    return fact.family, fact.relation


def _edits(sure: Sequence[Entry], draw: np.random.Generator, most: int | None) -> Edits:
    """Return a new answer for one popular fact of each large family."""
    large = {_family(f): f for f in sure if popular(f) and f.ratio >= LEAST}
    chosen = list({f.subject: f for f in large.values()}.values())[:most]
    return {
        f: str(
            draw.choice([o for i in range(ANSWERS) if (o := f"o{i}") not in (f.answer, f.rival)])
        )
        for f in chosen
    }


def _facts(edits: Edits, whole: bool = True) -> list[Fact]:
    """Return facts about the whole prompt, up to its last token, or about its subject."""
    named = ((f.prompt(), f.prompt() if whole else f.subject, new) for f, new in edits.items())
    return [Fact(prompt, subject, f" {new}") for prompt, subject, new in named]


def _rank_one(edits: Edits, layer: str = LAYER, whole: bool = True) -> Rewrite:
    (fact,) = _facts(edits, whole)
    return RankOneEdit(fact, layer, **SEARCH)


def _batch(edits: Edits, how: Any) -> Rewrite:
    return BatchEdit(_facts(edits), [LAYER], how=how, **SEARCH)


def _parts(edits: Edits, n: int) -> list[Edits]:
    pairs = list(edits.items())
    return [dict(pairs[i : i + n]) for i in range(0, len(pairs), n)]


def _fitted(model: Model, facts: Sequence[Entry]) -> sonde.Fitted:
    """Return the moments of what the layers read over all facts."""
    texts = [f.text(phrase) for f in facts for phrase in PHRASES]
    stream = sonde.read(model, texts, sites=[f"{FIRST}:in", f"{LAYER}:in"], reducer="tokens")
    return sonde.fit([SecondMoment(ridge=1e-3), NullSpace()], stream, progress=False)


def _rewritten(model: Model, fitted: Any, *edits: Rewrite) -> Model:
    """Return a net after edits, one after the other."""
    for edit in edits:
        model = replace(model, module=edit.plan(model, fitted).fold(model))
    return model


def _trained(model: Model, edits: Edits, seed: int) -> Model:
    """Return a net that was trained on the new answers alone."""
    return told_more(model, [f.text(answer=new) for f, new in edits.items()], MORE, seed)


def _judged(model: Model, edits: Edits, others: list[Entry], said: Any) -> dict[str, float]:
    """Return how often new answers are given, in both phrases, and how many others are kept."""
    new = asked(model, list(edits))
    kept = [
        a == b for f, own in asked(model, others).items() for a, b in zip(own, said[f], strict=True)
    ]
    first, second = ([own[i] == edits[f] for f, own in new.items()] for i in range(2))
    return {
        "new answer": fmean(first),
        "in the other phrase": fmean(second),
        "kept": fmean(kept),
    }
