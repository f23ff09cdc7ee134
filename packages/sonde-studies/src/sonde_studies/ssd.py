"""Test whether dampening a class's important weights forgets it like retraining does.

A toy: a small conv net on digits. What came out (ten seeds): the class falls from .93 to .17 on
unseen digits, where training anew gives 0, and the others stay (.946 before and after); it spreads
widely over seeds (.13). Smaller alphas forget no more; a strength of a tenth does, and the others
stay. Random labels forget all of the class and cost the others 13 points. No attacker tells any of
them from unseen digits (AUROC .5).
"""

from typing import final

from sonde.edit import RandomLabel, SelectiveDampening
from sonde.tap import squared_gradients
from sonde_studies._forgetting import UNSEEN, figures_of, retrained, sides_of, stand, world
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

ALPHAS, TENTH = (1.5, 2.5), 0.1


@final
class SSDStudy(Study):
    """One of ten classes to forget, with a small conv net; random labels as another fast way."""

    name = "ssd"
    title = "does dampening the weights that matter to a class forget it as training anew would?"
    paper = "foster2024ssd"
    fidelity = (
        "the rule as published; gradients of single examples where the reference squares the mean "
        "over a batch; alpha relative to its bound, since the published 10 selects nothing here; "
        "nothing was chosen on test digits"
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
            "Accuracy on the other classes stays within 2 points, at the default alpha.",
            "accuracy after less before, and 0.02",
            arms=("default", "before"),
        ),
        Claim(
            "half forgotten",
            "Accuracy on unseen digits of the forgotten class falls by more than half.",
            "share of the accuracy before that is lost, less 0.5",
        ),
        Claim(
            "a tenth",
            "With a strength of a tenth, accuracy on unseen digits of the forgotten class falls by "
            "more than nine tenths.",
            "share of the accuracy before that is lost, less 0.9",
        ),
        Claim(
            "a tenth retained",
            "It then stays within 2 points on the other classes.",
            "accuracy after less before, and 0.02",
            arms=("strength 0.1", "before"),
        ),
    )
    null = UNSEEN

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, forget the class, and compare with a net that never saw it."""
        tick("train")
        model, images, label, n = world(seed, tiny)
        sides = sides_of(model, images, label, n)
        tick("squared gradients")
        squares = {
            side: squared_gradients(model, sides[side], progress=False)
            for side in ("forget", "retain")
        }
        tick("train anew")
        anew = retrained(model, sides, seed, tiny)
        tick("forget")
        for name in ("default", "before", "strength 0.1"):
            note_for(name, updates=0)
        arms = {"default": SelectiveDampening()} | {
            f"alpha {a:g}": SelectiveDampening(a) for a in ALPHAS
        }
        arms["strength 0.1"] = SelectiveDampening(strength=TENTH)
        plans = {name: rule.plan(model, squares) for name, rule in arms.items()}
        plans["random labels"] = RandomLabel(seed=seed).plan(model, sides)
        found = {name: stand(model, plan.fold(model), sides, anew) for name, plan in plans.items()}
        tenth = figures_of(found, "strength 0.1", 0.02)
        return figures_of(found, "default", 0.02) | {
            "a tenth": tenth["near retraining"],
            "a tenth retained": tenth["retained"],
            "share changed | default": plans["default"].figures["share_changed"],
            "loss | training": squares["forget"].merge(squares["retain"]).mean_loss,
        }
