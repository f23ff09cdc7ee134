"""Test whether popular facts overshadow rare ones more if they share a longer prompt.

A fact is ``given family ... family relation answer .``: the family, which the rarer fact shares
with five popular ones, is said one, two, four or eight times; the one word that tells them apart
stays one word.
"""

from dataclasses import replace
from typing import Any, final

import numpy as np
import torch

from sonde import Model
from sonde.edit import log_linear
from sonde_studies._language import language_model, tokens_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import ANSWERS, END, PHRASES, Entry, tell

LENGTHS, RATIO, GIVENS = (1, 2, 4, 8), 5, 12
FAMILIES, TINY, LAYERS, WIDTH, STEPS = 24, 2, 2, 64, 700


@final
class LengthLawStudy(Study):
    """One net per seed, trained on all facts and queried for the rare ones."""

    name = "length-law"
    title = "do popular facts overshadow rarer ones by the logarithm of the length they share?"
    paper = "zhang2024overshadowing"
    fidelity = (
        "toy-size: the length is that of the words that both facts share, relative to the one word "
        "that tells them apart, made longer by saying one word again; nothing was chosen"
    )
    data = "planted facts, five popular ones to a rarer one; the shared name is 1 to 8 words long"
    claims = (
        Claim(
            "law",
            "The rate of popular answers to rarer facts rises with the logarithm of the length.",
            "slope of the rate, per e-fold",
        ),
        Claim(
            "ends",
            "It is larger at eight words than at one.",
            "difference of rates",
            arms=("8 words", "1 words"),
        ),
    )
    null = Claim(
        "others",
        "The rate of another family's popular answer does not rise with the length.",
        "slope of the rate, per e-fold",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net on the facts, and count popular answers by length."""
        facts = _drawn(seed, TINY if tiny else FAMILIES)
        names = sorted({f.family for f, _ in facts})
        words = [*(f"g{i}" for i in range(GIVENS)), *names, *(f"r0{p}" for p in PHRASES)]
        words += [*(f"o{i}" for i in range(ANSWERS)), END]
        tick("telling a net the facts")
        model = language_model(words, max(LENGTHS) + 4, seed, WIDTH, LAYERS)
        told = [f"{_prompt(f, n, p)} {f.answer} {END}" for f, n in facts for p in PHRASES]
        tell(model, told, 20 if tiny else STEPS, seed)
        for n in LENGTHS:
            note_for(f"{n} words", rows=sum(length == n for _, length in facts))
        tick("asking")
        kinds = {
            "rarer": [(f, n) for f, n in facts if f.rare and f.ratio > 1],
        }
        kinds["others"] = beside_others(kinds["rarer"])
        counts = {kind: [_count(model, own, n) for n in LENGTHS] for kind, own in kinds.items()}
        lengths = [float(n) for n in LENGTHS]
        laws = {
            kind: log_linear(lengths, *([c[i] for c in found] for i in (0, 1)))
            for kind, found in counts.items()
        }
        rate = [hits / n for hits, n in counts["rarer"]]
        return {
            "law": float(laws["rarer"].value),
            "ends": rate[-1] - rate[0],
            "others": float(laws["others"].value),
            "share of the variance that the law explains": laws["rarer"].r2,
            **{f"popular answers | {n} words": r for n, r in zip(LENGTHS, rate, strict=True)},
        }


def _drawn(seed: int, families: int) -> list[tuple[Entry, int]]:
    """Return facts with the length of their name; equal numbers of families for each length."""
    draw = np.random.default_rng(seed)
    found: list[tuple[Entry, int]] = []
    for i in range(families * len(LENGTHS) * 2):
        ratio = RATIO if i % 2 else 1
        common, other = (f"o{k}" for k in draw.permutation(ANSWERS)[:2])
        for k, given in enumerate(draw.permutation(GIVENS)[: ratio + 1]):
            pair = (other, common) if k == 0 else (common, other)
            entry = Entry(f"g{given}", f"f{i}", 0, *pair, ratio, k == 0)
            found.append((entry, LENGTHS[i // 2 % len(LENGTHS)]))
    return found


def beside_others(facts: list[tuple[Entry, int]]) -> list[tuple[Entry, int]]:
    """Return facts with the popular answer of the next family of the same length."""
    found: list[tuple[Entry, int]] = []
    for n in LENGTHS:
        own = [f for f, length in facts if length == n]
        next_ones = [*own[1:], own[0]]
        found += [(replace(f, rival=g.rival), n) for f, g in zip(own, next_ones, strict=True)]
    return found


def _prompt(fact: Entry, length: int, phrase: str) -> str:
    return f"{fact.given} {' '.join([fact.family] * length)} r{fact.relation}{phrase}"


@torch.no_grad()
def _count(model: Model, facts: list[tuple[Entry, int]], length: int) -> tuple[int, int]:
    """Return how often facts of a length get the other fact's answer, and the total."""
    asked = [(f, p) for f, n in facts if n == length for p in PHRASES]
    module: Any = model.module
    ids = (
        module(tokens_of(model, [_prompt(f, length, p) for f, p in asked])).logits[:, -1].argmax(1)
    )
    said = model.processor.convert_ids_to_tokens(ids.tolist())
    hits = sum(word == f.rival for word, (f, _) in zip(said, asked, strict=True))
    return hits, len(asked)
