"""Contrast of motion against background: positives with other scenes, negatives with other motion.

Simulated clips: a digit moves over one of eight textures, in one of eight directions.
"""

from typing import final

import torch
from torch import Tensor

from sonde.train import Contrast
from sonde_studies._moving_digits import FRAMES, KINDS, ClipNet, moving_digits, noisy
from sonde_studies.arms import Arms, arm
from sonde_studies.parts.heads import head_accuracy, linear_head, strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

CLIPS, FIT, STEPS, TINY, FEW = 2_000, 1_400, 400, 5, 240
HEAT = 0.2
ARMS = {
    "views": (False, False),
    "positives": (True, False),
    "both": (True, True),
}


@final
class FactorContrastStudy(Study):
    """Contrast of noisy views; with other scenes in positives, with other motion in negatives."""

    name = "factor-contrast"
    title = "do broken scenes and broken motions leave the motion in the states?"
    paper = "wang2021dsm"
    fidelity = "scenes broken by a still frame of another clip, motions by another order of frames"
    data = "simulated: 1,400 clips of four frames to train on, 600 to judge; digits over textures"
    claims = (
        Claim("scene", "With both, the states tell the scene worse than with views alone.",
              "accuracy of the strongest of three probes of the texture, views less both",
              arms=("both", "views")),
        Claim("motion", "They tell the motion no worse, to two points.",
              "accuracy of the strongest of three probes of the direction, both less views, and "
              "0.02",
              arms=("both", "views")),
        Claim("positives", "Positives whose scene is broken do the first by themselves.",
              "accuracy of a probe of the texture, views less positives",
              arms=("positives", "views")),
        Claim("negatives", "Negatives whose motion is broken add to the motion.",
              "accuracy of a probe of the direction, both less positives",
              arms=("both", "positives")),
    )  # fmt: skip
    null = Claim("still", "Where the digit does not move, its direction cannot be told.",
                 "accuracy of a probe of the direction, both, less 1/8")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same clips, and once on clips without motion."""
        n, steps = (FEW, TINY) if tiny else (CLIPS, STEPS)
        clips, scene, motion = moving_digits(n, seed, moves=True)
        still = moving_digits(n, seed, moves=False)[0]
        found, given = dict[str, dict[str, float]](), Arms()
        for name, (scenes, motions) in ARMS.items():
            tick(name)
            with arm(given, name):
                found[name] = _probed(clips, scene, motion, scenes, motions, seed, steps)
        tick("still")
        null = _probed(still, scene, motion, True, True, seed, steps)
        views, positives, both = (found[name] for name in ("views", "positives", "both"))
        return {
            "scene": views["texture, strongest"] - both["texture, strongest"],
            "motion": both["direction, strongest"] - views["direction, strongest"] + 0.02,
            "positives": views["texture"] - positives["texture"],
            "negatives": both["direction"] - positives["direction"],
            "still": null["direction"] - 1 / KINDS,
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
            **given.figures(),
        }


def _other_scene(clips: Tensor) -> Tensor:
    """Return clips with a frame of another clip added to all of their frames."""
    return (clips + clips.roll(1, 0)[:, :1]) / 2


def _other_motion(clips: Tensor) -> Tensor:
    """Return clips with their frames permuted, each clip in its own order."""
    order = torch.rand(clips.shape[:2]).argsort(1)
    kept = (order == torch.arange(FRAMES)).all(1, keepdim=True)
    order = torch.where(kept, order.flip(1), order)
    return clips.gather(1, order[..., None, None].expand_as(clips))


def _probed(
    clips: Tensor,
    scene: Tensor,
    motion: Tensor,
    scenes: bool,
    motions: bool,
    seed: int,
    steps: int,
) -> dict[str, float]:
    net, contrast = drawn(ClipNet, seed), Contrast(HEAT)
    fit = FIT * len(clips) // CLIPS

    def loss(rows: Tensor) -> Tensor:
        own = clips[rows]
        other = noisy(_other_scene(own) if scenes else own)
        view = torch.arange(2).repeat_interleave(len(rows))
        negative = net(noisy(_other_motion(own))) if motions else None
        return contrast(net(torch.cat([noisy(own), other])), view=view, negative=negative)

    minimise(loss, net.parameters(), fit, steps=steps, seed=seed)
    with torch.no_grad():
        states = net(clips)
    truths = {"texture": scene, "direction": motion}
    strongest = {f"{k}, strongest": strongest_accuracy(states, v, fit) for k, v in truths.items()}
    return strongest | {
        k: head_accuracy(linear_head(1.0), states, v, fit) for k, v in truths.items()
    }
