"""Test whether popular facts overshadow rare ones, and whether CoDa helps.

A toy: nets of three layers and tens of units, told facts of three words. At a threshold of 0.1
nats CoDa changes nothing: what it then leaves out moves no plausible answer by more than that, so
there is no contrast. Nets of two sizes alone say nothing of a law of size: in as many steps the
larger learns more of the rarer facts.
"""

from collections.abc import Callable
from statistics import fmean
from typing import final

from sonde import Model
from sonde.edit import CoDa, ContrastiveDecode, log_linear
from sonde.tap import OtherPrompts
from sonde_studies._language import tokens_of
from sonde_studies.arms import part, passes_of
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    RATIOS,
    Entry,
    FactWorld,
    Said,
    Schooling,
    asked,
    changed,
    facts_and_model,
    popular,
    prompts,
    rarer,
    rate,
    rates,
    some,
)

SIZES = (32, 64)
THRESHOLDS = (0.1, 0.3, 1.0, 3.0)
FAMILIES, TINY, EVERY = 8, 1, 6
LOST = 0.02
"""Of the accuracy of popular facts: a threshold that costs more is not chosen."""


@final
class CoDaStudy(Study):
    """Rates of the popular answer where the rare one is correct, by ratio, size and decoding."""

    name = "coda"
    title = (
        "do popular facts overshadow rarer ones by the logarithm of their ratio; does CoDa help?"
    )
    paper = "zhang2024overshadowing"
    fidelity = (
        "toy-size: facts of three words told to nets of 3 layers that were not trained to the end; "
        "ratio counts members that share the popular answer, as in the paper's synthetic sets; "
        "words are left out where the paper masks them; thresholds are ours, one is chosen on one "
        "half of the families and judged on the other"
    )
    data = f"facts of {FAMILIES * len(RATIOS)} families, popular and rarer by 1 to 100; planted"
    claims = (
        Claim(
            "law",
            "The rate of popular answers to rarer facts rises with the logarithm of the ratio.",
            "slope of the rate, per e-fold",
        ),
        Claim(
            "size",
            f"A net {SIZES[1]} wide, trained for as long, is overshadowed more than one {SIZES[0]} "
            "wide.",
            "difference of the rates",
            arms=("64 wide", "32 wide"),
        ),
        Claim(
            "weak words",
            "CoDa lowers the rate, at a threshold of 0.1 nats and in six passes.",
            "rate without less with",
            arms=("CoDa 0.1", "64 wide, decoded"),
        ),
        Claim(
            "chosen",
            "CoDa, in six passes, lowers the rate, at a threshold that was chosen on other "
            "families.",
            "rate without less with",
            arms=("CoDa 1", "64 wide, decoded"),
        ),
        Claim(
            "popular kept",
            "It costs popular facts less than 2 points of accuracy, at that threshold.",
            "accuracy with less without (one pass), and 0.02",
            arms=("CoDa 1", "64 wide, decoded"),
        ),
    )
    null = Claim(
        "no threshold",
        "Where no word counts as overshadowed, CoDa changes no answer.",
        "share of the answers that change, at a threshold of 0",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train nets of two sizes on the facts, and query the larger one with and without CoDa."""
        families, steps = (TINY, 40) if tiny else (FAMILIES, Schooling.steps)
        facts = some(FactWorld.drawn(seed, families).facts, EVERY)
        tick("telling two nets the facts")
        nets = list[Model]()
        for n in SIZES:
            with part(f"{n} wide"):
                nets.append(facts_and_model(seed, families, Schooling(n, steps=steps))[1])
        said = dict[str, Said]()
        for n, net in zip(SIZES, nets, strict=True):
            with passes_of(f"{n} wide, decoded", net.module):
                said[f"{n} wide"] = asked(net, facts)
        model = nets[1]
        tick("decoding")
        for x in THRESHOLDS:
            with passes_of(f"CoDa {x:g}", model.module):
                said[f"CoDa {x:g}"] = asked(model, facts, CoDa(threshold=x))
        unnamed = OtherPrompts(tokens_of(model, prompts(facts, named=False)))
        said["told the word"] = asked(model, facts, ContrastiveDecode(prompt=unnamed, strength=1.0))
        small, plain = (said[f"{width} wide"] for width in SIZES)
        halves = [_judged(plain, [said[f"CoDa {x:g}"] for x in THRESHOLDS], i) for i in (0, 1)]
        law = log_linear(*_counts(plain))
        return {
            "law": float(law.value),
            "size": _taken(plain) - _taken(small),
            "weak words": _taken(plain) - _taken(said["CoDa 0.1"]),
            "chosen": fmean(lowered for lowered, _ in halves),
            "popular kept": fmean(kept for _, kept in halves) + LOST,
            "no threshold": changed_at(model, facts),
            "share of the variance that the law explains": law.r2,
            "chance of a worse fit, were the law true": law.misfit,
            **rates(said),
            **{f"{arm} | ratio {r}": _taken(s, r) for arm, s in said.items() for r in RATIOS[1:]},
        }


def changed_at(model: Model, facts: list[Entry], threshold: float = 0.0) -> float:
    """Return the share of answers that CoDa changes."""
    return changed(asked(model, facts), asked(model, facts, CoDa(threshold=threshold)))


def _taken(said: Said, ratio: int | None = None) -> float:
    """Return the rate of popular answers to rare facts."""
    return rate(said, True, lambda f: rarer(f) and f.ratio == (ratio or f.ratio))


def _counts(said: Said) -> tuple[list[float], list[int], list[int]]:
    """Return the ratios, the popular answers to rare facts, and the number of questions."""
    of = {r: [f for f in said if f.rare and f.ratio == r] for r in RATIOS}
    hits = [sum(said[f].count(f.rival) for f in of[r]) for r in RATIOS]
    return [float(r) for r in RATIOS], hits, [sum(len(said[f]) for f in of[r]) for r in RATIOS]


def _judged(plain: Said, decoded: list[Said], half: int) -> tuple[float, float]:
    """Choose a threshold on half of the families, and return its effect in the other half."""

    def moved(other: Said, side: int) -> tuple[float, float]:
        def mine(kind: Callable[[Entry], bool]) -> Callable[[Entry], bool]:
            return lambda f: kind(f) and f.half == side

        lowered = rate(plain, True, mine(rarer)) - rate(other, True, mine(rarer))
        return lowered, rate(other, False, mine(popular)) - rate(plain, False, mine(popular))

    kept = [other for other in decoded if moved(other, half)[1] >= -LOST] or decoded
    return moved(max(kept, key=lambda other: moved(other, half)[0]), 1 - half)
