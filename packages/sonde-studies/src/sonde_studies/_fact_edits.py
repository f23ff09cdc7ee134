"""Facts to rewrite, and the edits that rewrite them."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

import sonde
from sonde import Model
from sonde.edit import BatchEdit, Fact, NullSpace, RankOneEdit, SecondMoment
from sonde.weights import Rewrite
from sonde_studies.worlds.facts import (
    ANSWERS,
    PHRASES,
    Entry,
    asked,
    popular,
    told_more,
)

Edits = dict[Entry, str]

FIRST, LAYER, LEAST = "transformer.h.0.mlp.c_proj", "transformer.h.2.mlp.c_proj", 5
MORE = 15
SEARCH: dict[str, Any] = {"prefixes": ("",), "steps": 50, "largest": 12.0}


def family_of(fact: Entry) -> tuple[str, int]:
    return fact.family, fact.relation


def edits_of(sure: Sequence[Entry], draw: np.random.Generator, most: int | None) -> Edits:
    """Return a new answer for one popular fact of each large family."""
    large = {family_of(f): f for f in sure if popular(f) and f.ratio >= LEAST}
    chosen = list({f.subject: f for f in large.values()}.values())[:most]
    return {
        f: str(
            draw.choice([o for i in range(ANSWERS) if (o := f"o{i}") not in (f.answer, f.rival)])
        )
        for f in chosen
    }


def facts_of(edits: Edits, whole: bool = True) -> list[Fact]:
    """Return facts whose subject is the whole prompt, or only the subject's tokens."""
    named = ((f.prompt(), f.prompt() if whole else f.subject, new) for f, new in edits.items())
    return [Fact(prompt, subject, f" {new}") for prompt, subject, new in named]


def rank_one(edits: Edits, layer: str = LAYER, whole: bool = True) -> Rewrite:
    (fact,) = facts_of(edits, whole)
    return RankOneEdit(fact, layer, **SEARCH)


def batch(edits: Edits, how: Any) -> Rewrite:
    return BatchEdit(facts_of(edits), [LAYER], how=how, **SEARCH)


def parts_of(edits: Edits, n: int) -> list[Edits]:
    pairs = list(edits.items())
    return [dict(pairs[i : i + n]) for i in range(0, len(pairs), n)]


def fitted_on_facts(model: Model, facts: Sequence[Entry]) -> sonde.Fitted:
    """Return the moments of the layers' inputs over all facts."""
    texts = [f.text(phrase) for f in facts for phrase in PHRASES]
    stream = sonde.read(model, texts, sites=[f"{FIRST}:in", f"{LAYER}:in"], reducer="tokens")
    return sonde.fit([SecondMoment(ridge=1e-3), NullSpace()], stream, progress=False)


def rewritten(model: Model, fitted: Any, *edits: Rewrite) -> Model:
    """Return a net after several edits, applied one after another."""
    for edit in edits:
        model = replace(model, module=edit.plan(model, fitted).fold(model))
    return model


def told_new(model: Model, edits: Edits, seed: int) -> Model:
    """Return a net that was fine-tuned on the new answers alone."""
    return told_more(model, [f.text(answer=new) for f, new in edits.items()], MORE, seed)


def judged(model: Model, edits: Edits, others: list[Entry], said: Any) -> dict[str, float]:
    """Return the rate of new answers, in both phrasings, and of other answers kept."""
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
