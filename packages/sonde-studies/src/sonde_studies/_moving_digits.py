"""Simulated clips: a digit moves over a texture of eight, in a direction of eight."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sonde_studies._recipe_data import shuffled_digits

FRAMES, SIDE, KINDS, DIM = 4, 12, 8, 32
MOVES = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def moving_digits(n: int, seed: int, *, moves: bool) -> tuple[Tensor, Tensor, Tensor]:
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


class ClipNet(nn.Module):
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
        """Return the state of each clip (clip, frame, line, column)."""
        return self.last(self.body(clips).mean((2, 3)))


def noisy(clips: Tensor) -> Tensor:
    """Return clips of another brightness, with noise."""
    return clips * (0.8 + 0.4 * torch.rand(len(clips), 1, 1, 1)) + 0.1 * torch.randn(clips.shape)
