"""Emulated tuning: add a small net's logit changes to those of a large net.

A toy: nets of one layer of 16 units and of three of 64, tuned to say facts in another form. What
came out: emulated, a word takes 1.85 nats less than by the large net before tuning, and .33 less
than by the small one tuned; really tuned it takes .49 less still. The gain over the small net is in
the answers, which the large net knows: there it is 1.24 nats.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import final

import torch

from sonde import Model
from sonde.edit import EmulatedFinetune
from sonde.tap import Decode
from sonde_studies._language import tokens_of
from sonde_studies.arms import note_again, note_for, note_sum, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    END,
    PHRASES,
    Entry,
    Schooling,
    facts_and_model,
    next_scores,
    popular,
    rarer,
    some,
    told_more,
)

SMALL, SMALL_STEPS = (16, 1), 300
STEPS, RATE, NEW, ONE_IN = 100, 1e-3, 3, 10
WORDS = ("answer", "form", "end")
FAMILIES, TINY, EVERY = 8, 1, 6
Nats = dict[Entry, list[float]]
"""Of each fact the nats of each new word, mean over phrases."""


@final
class EFTStudy(Study):
    """Nats per word of facts in a new format, with real and with emulated tuning."""

    name = "eft"
    title = "does emulated fine-tuning give a large net the tuning of a small one?"
    paper = "mitchell2024emulator"
    fidelity = (
        "toy-size: the formula as published, on nets of one layer of 16 units and of three of 64; "
        "tuning teaches to repeat the relation after the answer, as one text in ten did before, on "
        "the facts of half of the families; texts of the others are scored; the original tunes to "
        "dialogue; sizes and steps were fixed on other seeds and fewer families"
    )
    data = "facts of 56 families, popular and rarer by 1 to 100, in a plain and a tuned form"
    claims = (
        Claim(
            "over small tuned",
            "Emulated, in three passes and with its own updates and parameters, the large net "
            "gives tuned texts more likelihood than the small one tuned.",
            "nats per word, small tuned less emulated",
            arms=("emulated", "small tuned"),
        ),
        Claim(
            "over large base",
            "And more, with the small one's updates and two more passes, than the large one "
            "before tuning.",
            "nats per word, large base less emulated",
            arms=("emulated", "large base"),
        ),
        Claim(
            "below large tuned",
            "The large net that is really tuned, in fewer updates and one pass, gives them more "
            "still.",
            "nats per word, emulated less large tuned",
            arms=("large tuned", "emulated"),
        ),
        Claim(
            "knowledge",
            "The answers, which the large net of more parameters, updates and passes knows "
            "better, are likelier than by the small one tuned.",
            "nats of the answer, small tuned less emulated",
            arms=("emulated", "small tuned"),
        ),
    )
    null = Claim(
        "itself",
        "With the small net tuned in no step, emulation changes nothing.",
        "nats per word, large base less emulated",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Tune both nets on one format, and score texts of other families in it."""
        families, steps, few = (TINY, 40, 5) if tiny else (FAMILIES, Schooling.steps, 0)
        tick("telling two nets the facts")
        with part("large base"):
            world, large = facts_and_model(seed, families, Schooling(steps=steps))
        less = Schooling(*SMALL, steps=min(steps, SMALL_STEPS))
        with part("small base"):
            small = facts_and_model(seed, families, less)[1]
        forms = [f.text(phrase) for f in world.facts for phrase in PHRASES]
        forms += [_text(f, phrase) for f in world.facts[::ONE_IN] for phrase in PHRASES]
        with part("large base"):
            large = told_more(large, forms, few or STEPS, seed, RATE, NEW)
        with part("small base"):
            small = told_more(small, forms, few or STEPS, seed, RATE, NEW)
        tick("tuning both")
        told = [_text(f, phrase) for f in world.facts if f.half == 1 for phrase in PHRASES]
        models = {"large base": large, "small base": small}
        for name, base in (("large", large), ("small", small)):
            note_again(f"{name} tuned", f"{name} base")
            with part(f"{name} tuned"):
                models[f"{name} tuned"] = told_more(base, told, few or STEPS, seed, RATE, NEW)
        note_sum("emulated", ("large base", "small tuned"))
        for name, passes in (*((name, 1) for name in models), ("emulated", 3)):
            note_for(name, passes=passes)
        tick("scoring")
        facts = some((f for f in world.facts if f.half == 0), EVERY)
        nats = {arm: _nats(model, facts) for arm, model in models.items()}
        emulation = EmulatedFinetune(models["small tuned"], small)
        nats["emulated"] = _nats(large, facts, emulation)
        nats["emulated, every word"] = _nats(large, facts, replace(emulation, nucleus=1.0))
        nats["emulated, by half"] = _nats(large, facts, replace(emulation, strength=0.5))
        mean = {arm: fmean(fmean(own) for own in these.values()) for arm, these in nats.items()}
        answer = {arm: _answer(these, lambda _: True) for arm, these in nats.items()}
        return {
            "over small tuned": mean["small tuned"] - mean["emulated"],
            "over large base": mean["large base"] - mean["emulated"],
            "below large tuned": mean["emulated"] - mean["large tuned"],
            "knowledge": answer["small tuned"] - answer["emulated"],
            "itself": gained_by(large, small, small, facts),
            **{f"{arm} | nats per word": value for arm, value in mean.items()},
            **{
                f"{arm} | {word}": fmean(own[i] for own in these.values())
                for arm, these in nats.items()
                for i, word in enumerate(WORDS)
            },
            **{f"{arm} | popular": _answer(these, popular) for arm, these in nats.items()},
            **{f"{arm} | rarer": _answer(these, rarer) for arm, these in nats.items()},
        }


def gained_by(large: Model, tuned: Model, small: Model, facts: list[Entry]) -> float:
    """Return the nats per word that emulating a small net's tuning takes off a large net's loss."""
    rule = EmulatedFinetune(tuned, small, nucleus=1.0)
    plain, emulated = (_nats(large, facts, one).values() for one in (None, rule))
    return fmean(fmean(a) - fmean(b) for a, b in zip(plain, emulated, strict=True))


def _answer(nats: Nats, which: Callable[[Entry], bool]) -> float:
    """Return the mean loss in nats of the answers to some facts."""
    return fmean(own[0] for fact, own in nats.items() if which(fact))


def _text(fact: Entry, phrase: str) -> str:
    """Return a fact in the new format, with the relation repeated after the answer."""
    return f"{fact.prompt(phrase)} {fact.answer} r{fact.relation}{phrase} {END}"


@torch.no_grad()
def _nats(model: Model, facts: list[Entry], rule: Decode | None = None) -> Nats:
    """Return minus the log-probability of each of the last words, by a decoding rule."""
    ids = tokens_of(model, [_text(f, phrase) for f in facts for phrase in PHRASES])
    nats: list[torch.Tensor] = []
    for at in range(ids.shape[1] - NEW, ids.shape[1]):
        said = next_scores(model, ids[:, :at], rule).log_softmax(1)
        nats.append(-said.gather(1, ids[:, at : at + 1])[:, 0])
    each = torch.stack(nats, 1).unflatten(0, (len(facts), len(PHRASES))).mean(1)
    return dict(zip(facts, each.tolist(), strict=True))
