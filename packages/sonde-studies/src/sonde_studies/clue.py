"""Test whether the states of a reasoning trace predict a correct answer."""

from copy import deepcopy
from typing import final

import numpy as np

from sonde_studies._language import LAYERS, language_model
from sonde_studies._trace_scores import AREAS, Arm, chosen_by, null_area
from sonde_studies._traces import (
    BEGUN,
    ENOUGH,
    FEW,
    LONGEST,
    REWARDED,
    SAMPLES,
    STEPS,
    imitating,
    reward,
    traces_of,
)
from sonde_studies.arms import note_again, note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.chains import WORDS, Chains


@final
class CLUEStudy(Study):
    """CLUE on traces of a small transformer with an accuracy of two thirds.

    The arms show what else could tell right from wrong: the least chance of a token, a linear probe
    on the same deltas, the length; and how far each layer and fewer prompts go. A second model
    imitates until one of three is right and goes on by the reward of its own answers.
    """

    name = "clue"
    title = "do the states of a trace tell whether its answer is right?"
    paper = "liang2025clue"
    fidelity = (
        "official formula; all layers, as published, nothing chosen; toy-size: the original takes "
        "large models trained with reward, and here one is trained by imitation, and one by "
        "imitation and then by reward (REINFORCE against the mean of 8 samples of a prompt)"
    )
    data = (
        "chains of 1 to 6 operations modulo 7, worked out one by one; 8 samples of each of 300 "
        "prompts as experience and of 150 others; GPT-2 of 3 layers of 64"
    )
    claims = (
        Claim(
            "CLUE over chance",
            "Centroids of deltas tell wrong traces better than the mean chance of their tokens, "
            "which takes no labels.",
            "difference of AUROC",
            arms=("CLUE", "mean chance"),
        ),
        Claim(
            "depth",
            "The last layer separates better than the first.",
            "difference of AUROC",
            arms=("CLUE, last layer", "CLUE, first layer"),
        ),
        Claim(
            "best over random",
            "Of 8 answers the one that CLUE, fitted on labels of other prompts, finds best is "
            "right more often than a random one.",
            "difference of the share of right answers",
            arms=("CLUE", "random answer"),
        ),
        Claim(
            "top half over majority",
            "The majority of CLUE's best 4 of 8 is right more often than the majority of all, "
            "which takes no labels.",
            "difference of the share of right answers",
            arms=("CLUE", "majority"),
        ),
        Claim(
            "CLUE over length",
            "Centroids of deltas tell wrong traces better than their length, which takes no "
            "labels.",
            "difference of AUROC",
            arms=("CLUE", "length"),
        ),
        Claim(
            "within prompts",
            "They also tell right from wrong answers to the same prompt.",
            "AUROC within prompts",
            above=0.5,
        ),
        Claim(
            "few prompts",
            f"Traces of {FEW} prompts are enough: they lose less than .02.",
            "difference of AUROC",
            above=-0.02,
            arms=("CLUE, 20 prompts", "CLUE"),
        ),
        Claim(
            "reward",
            "Rewards in 80 further steps make more of a model's answers right.",
            "share of right answers after less before",
            arms=("reward", "before reward"),
        ),
        Claim(
            "reward over imitation",
            "Centroids of deltas tell wrong traces better where the model was trained by reward, "
            "in place of further steps of imitation.",
            "difference of AUROC",
            premise="reward",
            arms=("reward", "imitation"),
        ),
        Claim(
            "reward: CLUE over chance",
            "There they tell wrong traces better than the mean chance of their tokens, which "
            "takes no labels.",
            "difference of AUROC",
            premise="reward",
            arms=("CLUE, reward", "mean chance"),
        ),
        Claim(
            "reward: within prompts",
            "There they tell right from wrong answers to the same prompt.",
            "AUROC within prompts",
            above=0.5,
            premise="reward",
        ),
    )
    null = Claim("null", "Right traces, a random half called wrong.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, sample, fit, score."""
        world = Chains(modulus=3, most=2, fit=14, test=12) if tiny else Chains()
        draw = np.random.default_rng(seed)
        tick("training")
        model = language_model(WORDS, LONGEST, seed)
        steps = 20 if tiny else STEPS
        with part("before reward"):
            begun, first = imitating(model, world, draw, steps, BEGUN)
        note_again("imitation", "before reward")
        note_again("reward", "before reward")
        with part("imitation"):
            model, more = imitating(deepcopy(begun), world, draw, steps, ENOUGH)
        prompts = world.prompts(world.fit + world.test, draw)
        tick("sampling and scoring")
        arm = Arm.of(model, prompts, world.fit, draw)
        chosen = chosen_by(arm.test, arm.found["CLUE"], prompts)
        null = null_area(model, arm.fit, arm.test, draw)
        tick("training by reward")
        before = traces_of(begun, dict([*prompts.items()][world.fit :]), draw).right
        with part("reward"):
            reward(begun, world, draw, 3 if tiny else REWARDED)
        rewarded = Arm.of(begun, prompts, world.fit, draw)
        for name in ("CLUE", "CLUE, first layer", "CLUE, last layer"):
            note_for(name, rows=len(arm.fit.rows))
        note_for(f"CLUE, {FEW} prompts", rows=FEW * SAMPLES)
        note_for("CLUE, reward", rows=len(rewarded.fit.rows))
        for name in ("mean chance", "length", "majority", "random answer"):
            note_for(name, rows=0)
        return {
            "CLUE over chance": arm.over("CLUE", "mean chance"),
            "depth": arm.over(f"CLUE layer {LAYERS}", "CLUE layer 1"),
            "best over random": chosen["best right"] - chosen["random right"],
            "top half over majority": chosen["top half right"] - chosen["majority right"],
            "CLUE over length": arm.over("CLUE", "length"),
            "within prompts": arm.areas[f"CLUE | {AREAS[1]}"],
            "few prompts": arm.over(f"CLUE {FEW} prompts", "CLUE"),
            "reward": rewarded.test.right - before,
            "reward over imitation": rewarded.everywhere("CLUE") - arm.everywhere("CLUE"),
            "reward: CLUE over chance": rewarded.over("CLUE", "mean chance"),
            "reward: within prompts": rewarded.areas[f"CLUE | {AREAS[1]}"],
            "null": null,
            "right before reward": before,
            "right after reward": rewarded.test.right,
            "steps of imitation before reward": float(first),
            "steps of imitation": float(first + more),
            "traces not closed": 1 - len(arm.test.rows) / (SAMPLES * world.test),
            **chosen,
            **{f"best by {k} right": chosen_by(arm.test, arm.found[k], prompts)["best right"]
               for k in ("mean chance", "least chance", "probe")},
            **arm.areas,
            **{f"reward: {name}": value for name, value in rewarded.areas.items()},
        }  # fmt: skip
