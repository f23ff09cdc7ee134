"""Test whether a penalty on changes outside a region confines an adapter, and its cost.

A toy: a painter of words that learns to follow a picture's ink, and its ground unless it is held.
What came out (30 seeds): with a weight of 0.01 states outside the square move by less than a
thousandth of what they move without, the ink is followed nearly as well (.89 for .93), and a word
that names another ground than the picture is obeyed (.97 of its variance; without .57). The price
is what was forbidden: where no word names the ground, the picture's does not come (.11 for .80). At
ten times the weight nearly half of the ink is lost, at a tenth words are obeyed nearly as much
(.92). A tenth of the penalty on changes everywhere, ink included, obeys words by .91 and costs ink
(.87).
"""

from typing import final

from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.imitator import STEPS, Order, followed, imitator, order
from sonde_studies.worlds.painter import Painter, Studio, studio

WEIGHTS = (0.0, 0.001, 0.01, 0.1)
WEIGHT, EVERYWHERE = 0.01, 0.001
"""Weights of the penalty outside the region, and of one on changes everywhere."""
SHOWN = ("digit", "ink", "ground")
WORDED = ("worded ground", "moved outside", "moved inside")
START = 2000
"""Added to a seed for the trainings, so that none shares the painter's weights."""


@final
class IncrementPenaltyStudy(Study):
    """A generator of coloured digits learns to follow an image inside a square."""

    name = "increment-penalty"
    title = "does a penalty on the change outside a region keep an adapter inside it?"
    paper = "yu2024facechainfact"
    fidelity = (
        "toy size: digits on coloured grounds for faces in photographs, an attention net of two "
        "blocks for a diffusion model; the penalty as published, after each block; the "
        "weight that is claimed about was chosen on two of seeds 0 to 2, that of the penalty "
        "everywhere on seeds 100 and 101, so that it costs about five points of the ink"
    )
    data = "mean shapes of digits in an ink on a ground, named by words or shown by a picture"
    claims = (
        Claim(
            "ink kept",
            "The picture's ink is followed as well, to 5 points.",
            "share of the variance of inks, with less without, and 0.05",
            arms=("weight 0.01", "weight 0"),
        ),
        Claim(
            "words",
            "Where words name another ground than the picture's, they are followed more than with "
            "a tenth of the penalty on changes everywhere.",
            "share of the variance of grounds, penalty outside less everywhere",
            arms=("weight 0.01", "everywhere"),
        ),
        Claim(
            "ground kept",
            "Where no word names the ground, the picture's is followed as well, to 5 points.",
            "share of the variance of grounds, with less without, and 0.05",
            arms=("weight 0.01", "weight 0"),
        ),
    )
    null = Claim(
        "off",
        "With the picture's part of the adapter off, states stay as the words make them.",
        "root of the mean squared move outside the square, summed over blocks, weight 0",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a generator, and adapters with several weights of the penalty."""
        steps, n = (10, 50) if tiny else (STEPS, 400)
        tick("painter")
        at = studio(seed, steps)
        silent, named = (order(at, seed, n, grounds) for grounds in (False, True))
        arms = {f"weight {w:g}": (w, seed + START, False) for w in WEIGHTS}
        arms["everywhere"] = EVERYWHERE, seed + START, True
        off = 0.0
        free, worded = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
        for name, (weight, start, everywhere) in arms.items():
            tick(name)
            net = imitator(at, start, steps, penalty=weight, everywhere=everywhere)
            free[name], worded[name] = followed(at, net, silent), followed(at, net, named)
            if not weight:
                off = moved_at(at, net, silent, 0.0)
        without, with_it = "weight 0", f"weight {WEIGHT:g}"

        def gained(rows: dict[str, dict[str, float]], key: str, other: str = without) -> float:
            return rows[with_it][key] - rows[other][key]

        return {
            "ink kept": gained(free, "ink") + 0.05,
            "words": gained(worded, "worded ground", "everywhere"),
            "ground kept": gained(free, "ground") + 0.05,
            "off": off,
            **{f"{name} | {key}": row[key] for name, row in free.items() for key in SHOWN},
            **{f"{name} | {key}": row[key] for name, row in worded.items() for key in WORDED},
        }


def moved_at(at: Studio, net: Painter, of: Order, scale: float) -> float:
    """Return how far states move outside the square with a scale of the picture's part."""
    return followed(at, net, of, scale)["moved outside"] ** 0.5
