"""Test whether fusing a lower layer into contrastive decoding helps on difficult facts.

A toy: a net of three layers, told facts of three words; what it gets wrong is planted. What came
out (three seeds): the contrast at the last layer alone raises right answers to rarer facts from .33
to .39, and popular answers to them fall from .62 to .49; fusing a lower layer takes a little of it
back (.38). Why: read out at a lower layer the net knows rarer facts less (.16 and .24), and the
amateur's errors are of the last layer. The nets differ so much in how far they got (.22 to .52)
that three seeds decide nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import final

from torch import Tensor

from sonde.edit import ContrastiveDecode
from sonde.tap import Decode, DecodeContext, OtherLogits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    PHRASES,
    Schooling,
    asked,
    facts_and_model,
    first_over_second,
    rarer,
    rates,
    some,
    told_more,
)

LAYERS, WEIGHTS, STRENGTH = (0, 1), (0.1, 0.3, 0.5), 0.5
LAYER, WEIGHT = 1, 0.3
STEPS = 100
FAMILIES, TINY, EVERY = 8, 1, 6
LAST, FUSED = "last layer", f"layer {LAYER} by {WEIGHT:g}"
LOST = 0.02


@final
class LOLStudy(Study):
    """Accuracy on rare facts by contrast with a net that was trained on wrong facts."""

    name = "lol"
    title = (
        "does a contrast of lower layers, fused with that of the last, help on facts gone wrong?"
    )
    paper = "chen2024lol"
    fidelity = (
        "toy-size: the net reads facts of three words and was not trained to the end, so that it "
        "gives the family's popular answer for rarer facts; the amateur was tuned on such wrong "
        "answers in half of the families, the others are asked; strength, weight and layer were "
        "fixed before; no contrast with a guiding context"
    )
    data = "facts of 56 families, popular and rarer by 1 to 100; planted"
    claims = (
        Claim(
            "contrast",
            "The contrast at the last layer alone gives more right answers than plain decoding.",
            "difference of the rates of right answers to rarer facts",
        ),
        Claim(
            "fused",
            "Fusing the contrast at a lower layer gives more right answers than the last alone.",
            "difference of the rates of right answers to rarer facts",
        ),
        Claim(
            "popular kept",
            "The fused contrast costs popular facts less than 2 points of accuracy.",
            "accuracy with less without, and 0.02",
        ),
    )
    null = Claim(
        "even",
        "Two facts of one member each, of which none was told wrongly: what fusing does to them.",
        "difference of the gains in right answers",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net on the facts and a copy on wrong ones, and decode by contrast."""
        families, steps = (TINY, 40) if tiny else (FAMILIES, Schooling.steps)
        tick("telling a net the facts")
        world, model = facts_and_model(seed, families, Schooling(steps=steps))
        wrong = [f for f in world.facts if rarer(f) and f.half == 1]
        told = [f.text(phrase, f.rival) for f in wrong for phrase in PHRASES]
        amateur = told_more(model, told, 5 if tiny else STEPS, seed)
        facts = some((f for f in world.facts if f.half == 0), EVERY)
        tick("decoding")
        said = {"plain": asked(model, facts), "amateur": asked(amateur, facts)}
        last, fused = ContrastiveDecode(amateur, strength=STRENGTH), list[ContrastiveDecode]()
        said[LAST] = asked(model, facts, last)
        for layer in LAYERS:
            said[f"layer {layer} alone"] = asked(model, facts, _Early(layer))
            for weight in WEIGHTS:
                rule = ContrastiveDecode(
                    amateur, strength=STRENGTH, layers=(layer, -1), layer_weight=weight
                )
                said[f"layer {layer} by {weight:g}"] = asked(model, facts, rule)
                fused.append(rule)
        alike = [f for f in world.facts if f.ratio == 1]
        grid = rates(said)
        right = {arm: grid[f"{arm} | rarer, right"] for arm in said}
        return {
            "contrast": right[LAST] - right["plain"],
            "fused": right[FUSED] - right[LAST],
            "popular kept": grid[f"{FUSED} | popular, right"]
            - grid["plain | popular, right"]
            + LOST,
            "even": fmean(first_over_second(asked(model, alike, rule), False) for rule in fused)
            - first_over_second(asked(model, alike, last), False),
            **grid,
        }


@final
@dataclass(frozen=True)
class _Early(Decode):
    """Predictions of the net after an early block."""

    layer: int

    def reads(self) -> Mapping[str, OtherLogits]:
        return {"early": OtherLogits(layer=self.layer)}

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        return context.others["early"]
