"""Test contrastive decoding with a lower layer and a guiding context on facts gone wrong.

A toy: a net of three layers, told facts of three words. Of rarer facts, careless texts give the
family's popular answer twice as often as the right one; careful texts, which begin with the guiding
context, are always right. Questions begin with no context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from sonde import Model
from sonde.edit import ContrastiveDecode
from sonde.tap import Decode, DecodeContext, OtherLogits, OtherPrompts
from sonde_studies._careless_facts import GUIDE, LARGEST, SAYING_NOTHING, facts_told_carelessly
from sonde_studies._language import tokens_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.facts import (
    PHRASES,
    Entry,
    asked,
    changed,
    prompts,
    rarer,
    rates,
    told_more,
)

LAYERS, WEIGHTS, STRENGTH = (0, 1), (0.1, 0.3, 0.5), 0.5
LAYER, WEIGHT = 1, 0.3
SCHOOLING, STEPS = 400, 100
FAMILIES, TINY = 8, 1
LAST, FUSED, GUIDED = "last layer", f"layer {LAYER} by {WEIGHT:g}", "guided"
LOST = 0.02


@final
class LOLStudy(Study):
    """Accuracy on rare facts by contrast with a net that was trained on wrong facts."""

    name = "lol"
    title = "do a fused lower layer and a guiding context help contrastive decoding on wrong facts?"
    paper = "chen2024lol"
    fidelity = (
        "toy-size: the net reads facts of three words, of which careless texts are wrong twice as "
        "often as right where the fact is rare; the guiding context is a word that stood before "
        "correct texts, not a request; the amateur was tuned on wrong answers in half of the "
        "families, the others are asked; strength, weights and layer were fixed before"
    )
    data = f"facts of {2 * FAMILIES} families, popular and rarer by 2 and {LARGEST}; planted"
    claims = (
        Claim(
            "contrast",
            "The contrast at the last layer alone gives more right answers than plain decoding.",
            "difference of the rates of right answers to rarer facts; the contrast takes a second"
            " pass through the net that was tuned on wrong facts",
            arms=(LAST, "plain"),
        ),
        Claim(
            "fused",
            "Fusing the contrast at a lower layer gives more right answers than the last alone.",
            "difference of the rates of right answers to rarer facts",
            arms=(FUSED, LAST),
        ),
        Claim(
            "guided",
            "With the guiding context the fused contrast gives more right answers than without.",
            "difference of the rates of right answers to rarer facts; the guide takes a third pass",
            arms=(f"{GUIDED} by {GUIDE}", FUSED),
        ),
        Claim(
            "context",
            "The guiding context gives more than one that stood before right and wrong texts.",
            "difference of the rates of right answers to rarer facts, both in the fused contrast",
            arms=(f"{GUIDED} by {GUIDE}", f"{GUIDED} by {SAYING_NOTHING[0]}"),
        ),
        Claim(
            "whole rule",
            "The whole rule gives more than asking after the guiding context by plain decoding.",
            "difference of the rates of right answers to rarer facts; the whole rule takes three "
            "passes",
            arms=(f"{GUIDED} by {GUIDE}", f"asked after {GUIDE}"),
        ),
        Claim(
            "popular kept",
            "The whole rule costs popular facts less than 2 points of accuracy.",
            "accuracy with it, in three passes for one, less without, and 0.02",
            arms=(f"{GUIDED} by {GUIDE}", "plain"),
        ),
    )
    null = Claim(
        "itself",
        "A contrast of the net with itself changes no answer.",
        "share of the answers that change by the contrast at the last layer",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net on the facts and a copy on wrong ones, and decode by contrast."""
        tick("telling a net the facts")
        facts, model = facts_told_carelessly(
            seed, TINY if tiny else FAMILIES, 40 if tiny else SCHOOLING
        )
        wrong = [f.text(phrase, f.rival) for f in _half(facts, 1) if rarer(f) for phrase in PHRASES]
        amateur = told_more(model, wrong, 5 if tiny else STEPS, seed)
        facts = _half(facts, 0)

        def rule(layer: int, weight: float, context: str = "") -> ContrastiveDecode:
            other = OtherPrompts(tokens_of(model, prompts(facts, before=context)))
            return ContrastiveDecode(
                amateur,
                strength=STRENGTH,
                layers=(layer, -1),
                layer_weight=weight,
                guide=other if context else None,
            )

        tick("decoding")
        said = {"plain": asked(model, facts), "amateur": asked(amateur, facts)}
        said[LAST] = asked(model, facts, ContrastiveDecode(amateur, strength=STRENGTH))
        for layer in LAYERS:
            said[f"layer {layer} alone"] = asked(model, facts, _Early(layer))
            for weight in WEIGHTS:
                said[f"layer {layer} by {weight:g}"] = asked(model, facts, rule(layer, weight))
        for context in (GUIDE, *SAYING_NOTHING):
            said[f"asked after {context}"] = asked(model, facts, before=context)
            said[f"{GUIDED} by {context}"] = asked(model, facts, rule(LAYER, WEIGHT, context))
        for arm in said:
            contrasts = arm == LAST or " by " in arm
            note_for(arm, passes=3 if arm.startswith(GUIDED) else 2 if contrasts else 1)
        grid = rates(said)
        right = {arm: grid[f"{arm} | rarer, right"] for arm in said}
        whole, one = f"{GUIDED} by {GUIDE}", f"{GUIDED} by {SAYING_NOTHING[0]}"
        kept = grid[f"{whole} | popular, right"] - grid["plain | popular, right"]
        return {
            "contrast": right[LAST] - right["plain"],
            "fused": right[FUSED] - right[LAST],
            "guided": right[whole] - right[FUSED],
            "context": right[whole] - right[one],
            "whole rule": right[whole] - right[f"asked after {GUIDE}"],
            "popular kept": kept + LOST,
            "itself": changed_by(model, model, facts),
            **grid,
        }


def changed_by(model: Model, amateur: Model, facts: list[Entry]) -> float:
    """Return the share of answers that a contrast with an amateur changes."""
    rule = ContrastiveDecode(amateur, strength=STRENGTH)
    return changed(asked(model, facts), asked(model, facts, rule))


def _half(facts: list[Entry], half: int) -> list[Entry]:
    """Return the facts of one half of the families."""
    return [f for f in facts if f.half == half]


@final
@dataclass(frozen=True)
class _Early(Decode):
    """Predictions of the net after an early block."""

    layer: int

    def reads(self) -> Mapping[str, OtherLogits]:
        return {"early": OtherLogits(layer=self.layer)}

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        return context.others["early"]
