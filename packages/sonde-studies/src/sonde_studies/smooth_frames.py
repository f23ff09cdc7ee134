"""Frames between key frames: from blended states, from blended pixels, or one by one.

A net that cleans noisy pictures one by one is run on a clip; nothing is trained for time.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, mse_loss

import sonde
from sonde.edit import TemporalCorrection
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise

FIT, CLIPS, FRAMES, STEPS, TINY, NOISE = 1_000, 300, 9, 1_500, 30, 0.35
KEYS = (0, 4, 8)
TURN = math.radians(80)


@final
class SmoothFramesStudy(Study):
    """Rotating digits, denoised frame by frame, with states held near those of key frames."""

    name = "smooth-frames"
    title = "are frames smoother where states are blended between key frames?"
    paper = "yang2024zerosmooth"
    fidelity = "the general blend of states; a cleaner of pictures in place of a video model"
    data = "digits that turn by 80 degrees in nine frames with noise; every fourth is a key"
    claims = (
        Claim("smoother", "At half strength blended states flicker less than blended pixels.",
              "mean absolute second difference, pixels less states, as a share of the former",
              arms=("states", "blended pixels")),
        Claim("near pixels",
              "They are nearer to the truth than blends of key frames' pixels, which take three "
              "passes for nine.",
              "mean squared error between keys, pixels less states, as a share of the former",
              arms=("states", "pixels of keys")),
        Claim("near frames", "They are as near to it as frames cleaned one by one, to a twentieth.",
              "mean squared error between keys, one by one less states, as a share, and 0.05",
              arms=("states", "one by one")),
        Claim("half", "Half of the strength is nearer to the truth than all or nothing.",
              "mean squared error between keys, the better of both less half, as a share"),
    )  # fmt: skip
    null = Claim("no strength", "At strength 0 frames come out as one by one.",
                 "mean absolute change of a pixel")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the denoiser on single images, and run it on clips in each way."""
        x, _ = digit_images(seed)
        tick("cleaner")
        net = _cleaner(x[:FIT], seed, TINY if tiny else STEPS)
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randint(FIT, len(x), (CLIPS,), generator=draw)
        angles = TURN * (torch.arange(FRAMES) / (FRAMES - 1) - 0.5)
        turned = [_turned(x[rows], angle.expand(CLIPS)) for angle in angles]
        truth = torch.stack(turned, 1).flatten(2)
        clip = truth + NOISE * torch.randn(truth.shape, generator=draw)
        tick("clips")
        made = {strength: _run(net, clip, strength) for strength in (0.0, 0.5, 1.0)}
        for name in ("states", "blended pixels", "one by one"):
            note_for(name, passes=FRAMES)
        note_for("pixels of keys", passes=len(KEYS))
        share = torch.tensor([(t % 4) / 4 for t in range(FRAMES)])[:, None]
        left = made[0.0][:, [0, 0, 0, 0, 4, 4, 4, 4, 8]]
        right = made[0.0][:, [4, 4, 4, 4, 8, 8, 8, 8, 8]]
        between = [t for t in range(FRAMES) if t not in KEYS]
        frames = {f"strength {s:g}": m for s, m in made.items()}
        frames["pixels"] = torch.lerp(left, right, share)
        frames["pixels, strength 0.5"] = torch.lerp(made[0.0], frames["pixels"], 0.5)
        wanted = truth[:, between]
        error = {name: float(mse_loss(f[:, between], wanted)) for name, f in frames.items()}
        flicker = {name: f.diff(n=2, dim=1).abs().mean((1, 2)) for name, f in frames.items()}
        plain, blended = error["strength 0"], error["strength 1"]
        half, by_pixels = flicker["strength 0.5"], flicker["pixels, strength 0.5"]
        best = min(plain, blended)
        return {
            "smoother": 1 - float(half.mean() / by_pixels.mean()),
            "near pixels": 1 - blended / error["pixels"],
            "near frames": 1 - blended / plain + 0.05,
            "half": 1 - error["strength 0.5"] / best,
            "no strength": moved_at(net, clip),
            **{f"error | {name}": v for name, v in error.items()},
            **{f"flicker | {name}": float(v.mean()) for name, v in flicker.items()},
        }


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, 0 * cos, sin, cos, 0 * cos], 1).reshape(-1, 2, 3)
    grid = affine_grid(turn, list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def _cleaner(x: Tensor, seed: int, steps: int) -> nn.Sequential:
    """Return a net that denoises rotated digits through 24 units."""

    def make() -> nn.Sequential:
        outward = (nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 24))
        return nn.Sequential(*outward, nn.Linear(24, 160), nn.ReLU(), nn.Linear(160, 64))

    net = drawn(make, seed)

    def loss(rows: Tensor) -> Tensor:
        clean = _turned(x[rows], TURN * (torch.rand(len(rows)) - 0.5)).flatten(1)
        return mse_loss(net(clean + NOISE * torch.randn(clean.shape)), clean)

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def moved_at(net: nn.Sequential, clip: Tensor, strength: float = 0.0) -> float:
    """Return how far blended states move the pixels of frames that are cleaned one by one."""
    return float((_run(net, clip, strength) - net(clip)).abs().mean())


@torch.no_grad()
def _run(net: nn.Sequential, clip: Tensor, strength: float) -> Tensor:
    """Return the denoised clip, with states blended towards those of the key frames."""
    edit = TemporalCorrection(KEYS, strength=strength)
    keys = net[:3](clip[:, list(KEYS)])
    with sonde.editing(net, edit, "2", others={"key": {"2:out": keys}}):
        return net(clip)
