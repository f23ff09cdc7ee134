"""Contrast of motion against background: positives with other scenes, negatives with other motion.

Simulated clips: a digit moves over one of eight textures, in one of eight directions.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sonde.train import Contrast
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import Arms, arm
from sonde_studies.parts.heads import head_accuracy, linear_head
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

CLIPS, FIT, STEPS, TINY, FEW = 2_000, 1_400, 400, 5, 120
FRAMES, SIDE, KINDS, DIM, HEAT = 4, 12, 8, 32, 0.2
MOVES = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
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
              "accuracy of a probe of the texture, views less both", arms=("both", "views")),
        Claim("motion", "They tell the motion no worse, to two points.",
              "accuracy of a probe of the direction, both less views, and 0.02"),
        Claim("positives", "Positives whose scene is broken do the first by themselves.",
              "accuracy of a probe of the texture, views less positives"),
        Claim("negatives", "Negatives whose motion is broken add to the motion.",
              "accuracy of a probe of the direction, both less positives",
              arms=("both", "positives")),
    )  # fmt: skip
    null = Claim("still", "Where the digit does not move, its direction cannot be told.",
                 "accuracy of a probe of the direction, both, less 1/8")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same clips, and once on clips without motion."""
        n, steps = (FEW, TINY) if tiny else (CLIPS, STEPS)
        clips, scene, motion = _clips(n, seed, moves=True)
        still = _clips(n, seed, moves=False)[0]
        found, given = dict[str, dict[str, float]](), Arms()
        for name, (scenes, motions) in ARMS.items():
            tick(name)
            with arm(given, name):
                found[name] = _probed(clips, scene, motion, scenes, motions, seed, steps)
        tick("still")
        null = _probed(still, scene, motion, True, True, seed, steps)
        views, positives, both = (found[name] for name in ("views", "positives", "both"))
        return {
            "scene": views["texture"] - both["texture"],
            "motion": both["direction"] - views["direction"] + 0.02,
            "positives": views["texture"] - positives["texture"],
            "negatives": both["direction"] - positives["direction"],
            "still": null["direction"] - 1 / KINDS,
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
            **given.figures(),
        }


def _clips(n: int, seed: int, *, moves: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return clips (clip, frame, line, column), the texture and the direction of each."""
    digits = shuffled_digits(seed)[0].reshape(-1, 8, 8)
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(KINDS, 1, 4, 4, generator=draw)
    textures = interpolate(coarse, (SIDE, SIDE), mode="bilinear")[:, 0]
    scene, motion = (torch.randint(KINDS, (n,), generator=draw) for _ in range(2))
    clips = torch.zeros(n, FRAMES, SIDE, SIDE)
    for i in range(n):
        digit = digits[int(torch.randint(len(digits), (), generator=draw))]
        start, shift = torch.randint(SIDE, (2, 2), generator=draw).tolist()
        ground = 0.7 * textures[scene[i]].roll(tuple(shift), (0, 1))
        canvas = torch.zeros(SIDE, SIDE)
        canvas[:8, :8] = digit
        down, right = MOVES[int(motion[i])] if moves else (0, 0)
        for t in range(FRAMES):
            place = (start[0] + t * down, start[1] + t * right)
            clips[i, t] = torch.maximum(ground, canvas.roll(place, (0, 1)))
    return clips, scene, motion


class _Net(nn.Module):
    """Two convolutions with frames as channels, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(FRAMES, 16, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1, padding_mode="circular"),
            nn.ReLU(),
        )
        self.last = nn.Linear(32, DIM)

    def forward(self, clips: Tensor) -> Tensor:
        return self.last(self.body(clips).mean((2, 3)))


def _noisy(clips: Tensor) -> Tensor:
    return clips * (0.8 + 0.4 * torch.rand(len(clips), 1, 1, 1)) + 0.1 * torch.randn(clips.shape)


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
    net, contrast = drawn(_Net, seed), Contrast(HEAT)
    fit = FIT * len(clips) // CLIPS

    def loss(rows: Tensor) -> Tensor:
        own = clips[rows]
        other = _noisy(_other_scene(own) if scenes else own)
        view = torch.arange(2).repeat_interleave(len(rows))
        negative = net(_noisy(_other_motion(own))) if motions else None
        return contrast(net(torch.cat([_noisy(own), other])), view=view, negative=negative)

    minimise(loss, net.parameters(), fit, steps=steps, seed=seed)
    with torch.no_grad():
        states = net(clips)
    truths = {"texture": scene, "direction": motion}
    return {k: head_accuracy(linear_head(1.0), states, v, fit) for k, v in truths.items()}
