"""Test whether a second attention to another image preserves the effect of words.

A toy: a painter of words that learns to follow a picture as well. What came out: .92 of the
ink is the picture's, the digit stays the word's in 98 %. With one softmax over both the ink is as
near (.94), but of a ground that a word names against the picture .48 less is the word's than by two
softmaxes; at half the scale .24 more is.
"""

from typing import final

from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.imitator import STEPS, followed, imitator, order
from sonde_studies.worlds.painter import studio

SHOWN = ("digit", "ink", "ground")
WORDED = "worded ground"
ARMS = {
    "two softmaxes": (False, 1.0),
    "half the scale": (False, 0.5),
    "one softmax": (True, 1.0),
}


@final
class DecoupledCrossAttentionStudy(Study):
    """A generator of coloured digits learns to follow an image as well as words."""

    name = "decoupled-cross-attention"
    title = "does a softmax of its own for another picture leave words their say?"
    paper = "ye2023ipadapter"
    fidelity = (
        "toy size: an attention net of two blocks for a diffusion model, four tokens of the other "
        "picture by a small net for those of a frozen image encoder; only that net and the new "
        "keys and values are trained, with either source dropped for one example in twenty, as "
        "published; nothing was chosen"
    )
    data = "mean shapes of digits in an ink on a ground, named by words or shown by a picture"
    claims = (
        Claim(
            "follows",
            "Most of the ink is as in the other picture, where words name none.",
            "share of the variance of inks",
            above=0.5,
        ),
        Claim(
            "digit",
            "The digit is the word's in more than 95%, though the picture shows another.",
            "share of pictures",
            above=0.95,
        ),
        Claim(
            "as near",
            "It follows the ink as closely as with one softmax over words and picture, to 5 "
            "points.",
            "share of the variance of inks, difference and 0.05",
            arms=("imitator, two softmaxes", "imitator, one softmax"),
        ),
        Claim(
            "words",
            "Where words name another ground than the picture's, they are followed more than with "
            "one softmax.",
            "share of the variance of grounds, difference",
            arms=("imitator, two softmaxes", "imitator, one softmax"),
        ),
        Claim(
            "turned",
            "At half the scale they are followed more than at the whole.",
            "share of the variance of grounds, difference",
            arms=("half the scale", "whole scale"),
        ),
    )
    null = Claim(
        "unrelated",
        "The ink has nothing of the picture that another canvas follows.",
        "correlation, mean of three channels",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a generator and two imitators, and measure their use of words and images."""
        steps, n = (10, 50) if tiny else (STEPS, 400)
        tick("painter")
        at = studio(seed, steps)
        silent, named = (order(at, seed, n, grounds) for grounds in (False, True))
        nets = {}
        for joint in (False, True):
            tick("imitator, one softmax" if joint else "imitator, two softmaxes")
            nets[joint] = imitator(at, seed, steps, joint=joint)
        for name in ("half the scale", "whole scale"):
            note_again(name, "imitator, two softmaxes")
        free = {k: followed(at, nets[joint], silent, x) for k, (joint, x) in ARMS.items()}
        worded = {k: followed(at, nets[joint], named, x) for k, (joint, x) in ARMS.items()}
        two, half, one = ARMS
        return {
            "follows": free[two]["ink"],
            "digit": free[two]["digit"],
            "as near": free[two]["ink"] - free[one]["ink"] + 0.05,
            "words": worded[two][WORDED] - worded[one][WORDED],
            "turned": worded[half][WORDED] - worded[two][WORDED],
            "unrelated": free[two]["another picture's ink"],
            **{f"{name} | {key}": row[key] for name, row in free.items() for key in SHOWN},
            **{f"{name} | {WORDED}": row[WORDED] for name, row in worded.items()},
            **{f"{name} | picture's ground then": row["ground"] for name, row in worded.items()},
        }
