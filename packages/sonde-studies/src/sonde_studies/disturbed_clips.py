"""Contrast of motion against scene, by smooth local warps of space and of time.

Positives are clips whose scene is bent in all frames alike, negatives are clips whose frames are
bent one by one.
"""

from typing import final

import torch
from torch import Tensor

from sonde.train import Contrast, local_disturbance
from sonde_studies._moving_digits import KINDS, ClipNet, moving_digits, noisy
from sonde_studies.arms import Arms, arm
from sonde_studies.parts.heads import strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

CLIPS, FIT, STEPS, TINY, FEW, HEAT = 2_000, 1_400, 400, 5, 240, 0.2
ARMS = {"views": (False, False), "space": (True, False), "both": (True, True)}


@final
class DisturbedClipsStudy(Study):
    """Contrast of noisy views; with warped scenes in positives, with warped motion in negatives."""

    name = "disturbed-clips"
    title = "do spatial and temporal local disturbance leave the motion, and less of the scene?"
    paper = "wang2021dsm"
    fidelity = "warps at their defaults, the paper's are not known; a net of two convolutions"
    data = "simulated: 1,400 clips of four frames to train on, 600 to judge; digits over textures"
    claims = (
        Claim("scene", "With both disturbances the states tell the scene worse than with views "
              "alone.", "accuracy of the strongest probe of the texture, views less both",
              arms=("both", "views")),
        Claim("motion", "They tell the motion better.",
              "accuracy of the strongest probe of the direction, both less views",
              arms=("both", "views")),
        Claim("negatives", "Clips with a disturbed motion as negatives add to the motion.",
              "accuracy of the strongest probe of the direction, both less space",
              arms=("both", "space")),
    )  # fmt: skip
    null = Claim("still", "Where the digit does not move, its direction cannot be told.",
                 "accuracy of the strongest probe of the direction, both, less 1/8")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same clips, and once on clips without motion."""
        n, steps = (FEW, TINY) if tiny else (CLIPS, STEPS)
        clips, scene, motion = moving_digits(n, seed, moves=True)
        still = moving_digits(n, seed, moves=False)[0]
        found, given = dict[str, dict[str, float]](), Arms()
        for name, (space, time) in ARMS.items():
            tick(name)
            with arm(given, name):
                states, fit = _states(clips, space, time, seed, steps)
            truths = {"texture": scene, "direction": motion}
            found[name] = {k: strongest_accuracy(states, v, fit) for k, v in truths.items()}
        tick("still")
        states, fit = _states(still, True, True, seed, steps)
        views, space, both = (found[name] for name in ARMS)
        return {
            "scene": views["texture"] - both["texture"],
            "motion": both["direction"] - views["direction"],
            "negatives": both["direction"] - space["direction"],
            "still": strongest_accuracy(states, motion, fit) - 1 / KINDS,
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
            **given.figures(),
        }


def _states(clips: Tensor, space: bool, time: bool, seed: int, steps: int) -> tuple[Tensor, int]:
    """Return the states of all clips after training on the first, and how many trained."""
    net, contrast, fit = drawn(ClipNet, seed), Contrast(HEAT), FIT * len(clips) // CLIPS
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        own = clips[rows]
        other = local_disturbance(own[:, None], "space", generator=draw)[:, 0] if space else own
        view = torch.arange(2).repeat_interleave(len(rows))
        negative = None
        if time:
            moved = local_disturbance(own[:, None], "time", generator=draw)[:, 0]
            negative = net(noisy(moved))
        return contrast(net(torch.cat([noisy(own), noisy(other)])), view=view, negative=negative)

    minimise(loss, net.parameters(), fit, steps=steps, seed=seed)
    with torch.no_grad():
        return net(clips), fit
