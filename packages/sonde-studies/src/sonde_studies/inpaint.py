"""Test whether filling at several scales and equalised features improve inpainting.

Patches of the two photographs that scikit-learn ships, with a quarter of each patch hidden.
"""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from sklearn.datasets import load_sample_images  # pyright: ignore
from torch import Tensor, nn
from torch.nn import functional

from sonde.layers import Exchange, PartialConv
from sonde_studies._unet import WIDTH, Mixed, Pair, UNet
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, HOLE, STEPS, TINY, RATE = 16, 8, 500, 4, 1e-3
SIZES, SAME = (3, 5, 7), (5, 5, 5)


@final
class InpaintStudy(Study):
    """A U-Net whose deep and shallow features are filled, equalised, or from one side only."""

    name = "inpaint"
    title = "do branches that fill at several scales, and equal features, help to fill holes?"
    paper = "liu2020medfe"
    fidelity = (
        "branches at two of three levels, of structure and of texture; trained on pixels alone, "
        "without the losses of each branch and of an adversary"
    )
    seconds = 120.0
    data = "patches of 16 x 16 of two photographs, grey, at a quarter of their size; one side of "
    data += "each trains, the other judges"
    claims = (
        Claim("equalised", "Equalised features fill holes better than a plain map of equal size.",
              "PSNR in holes, dB, equalised less plain map",
              arms=("equalised", "plain map")),
        Claim("more", "Equalised features fill holes better than features that are only joined.",
              "PSNR in holes, dB, equalised less joined",
              arms=("equalised", "joined")),
        Claim("deep", "Holes need the second level's deep features more than its shallow ones.",
              "PSNR in holes, dB, without shallow less without deep ones",
              arms=("without shallow", "without deep")),
        Claim("filled", "Branches that read known positions alone fill holes better than such of "
              "ordinary convolutions.", "PSNR in holes, dB, filled less ordinary",
              arms=("filled", "ordinary")),
        Claim("scales", "Windows of three sizes fill holes better than three of one size, with "
              "8 % fewer weights.", "PSNR in holes, dB, filled less one scale",
              arms=("filled", "one scale")),
        Claim("branches", "A branch for the deep and one for the shallow features fill holes "
              "better than both in turn for the deep ones.",
              "PSNR in holes, dB, filled less one branch", arms=("filled", "one branch")),
    )  # fmt: skip
    null = Claim("hidden", "What a hole hides does not reach the net: it paints the same of noise.",
                 "mean absolute difference of painted pixels, joined, from 0 to 1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same holes."""
        train, test = (_patches(side, seed, 24 if tiny else 1200) for side in (0, 1))
        nets: dict[str, Callable[[], nn.Module]] = {
            "joined": lambda: UNet(2, 1),
            "plain map": lambda: UNet(2, 1, meeting=Mixed(2 * WIDTH, WIDTH)),
            "equalised": lambda: UNet(2, 1, meeting=Exchange("equalise", WIDTH)),
            "without deep": lambda: UNet(2, 1, meeting=Pair(1)),
            "without shallow": lambda: UNet(2, 1, meeting=Pair(0)),
            "filled": Branches,
            "ordinary": lambda: Branches(masked=False),
            "one scale": lambda: Branches(SAME),
            "one branch": lambda: Branches(shallow=False),
        }
        found: dict[str, float] = {}
        trained = dict[str, nn.Module]()
        for arm, make in nets.items():
            tick(arm)
            trained[arm] = net = drawn(make, seed)
            _learn(net, train, seed, TINY if tiny else STEPS)
            found[arm] = _quality(net, test, seed)
        holes = _holes(len(test), torch.Generator().manual_seed(seed + 1))
        return {
            "equalised": found["equalised"] - found["plain map"],
            "more": found["equalised"] - found["joined"],
            "deep": found["without shallow"] - found["without deep"],
            "filled": found["filled"] - found["ordinary"],
            "scales": found["filled"] - found["one scale"],
            "branches": found["filled"] - found["one branch"],
            "hidden": moved_by_hidden(trained["joined"], test, holes, holes),
            **{f"dB | {arm}": v for arm, v in found.items()},
        }


class Branches(nn.Module):
    """A U-Net that fills its deep and its shallow features before it equalises them.

    Parameters
    ----------
    kernels : tuple of int, default=(3, 5, 7)
        Windows of each branch.
    masked : bool, default=True
        Read known positions alone; else all, as ordinary convolutions do.
    shallow : bool, default=True
        One of the two branches fills the second level; else both fill the deepest, in turn.
    """

    def __init__(
        self, kernels: tuple[int, ...] = SIZES, masked: bool = True, shallow: bool = True
    ) -> None:
        super().__init__()
        self.net = UNet(2, 1, meeting=Exchange("equalise", WIDTH))
        self.structure, self.texture = (PartialConv(WIDTH, kernels) for _ in range(2))
        self.masked, self.shallow = masked, shallow

    def forward(self, x: Tensor) -> Tensor:
        """Return what is painted; the second channel says what is hidden."""
        fine, middle, deep = self.net.levels(x)
        near, far = (self._known(x, size) for size in (2, 4))
        deep = self.structure(deep, far)
        if self.shallow:
            middle = self.texture(middle, near)
        else:
            deep = self.texture(deep, far)
        return self.net.joined(fine, middle, deep)

    def _known(self, x: Tensor, size: int) -> Tensor | None:
        """Return which positions of a level see a pixel that is not hidden."""
        return functional.max_pool2d(1 - x[:, 1:], size) > 0 if self.masked else None


def _patches(side: int, seed: int, n: int) -> Tensor:
    """Return patches of the same half of both photographs, in [0, 1]."""
    draw, pictures = torch.Generator().manual_seed(2 * seed + side), []
    photographs: Any = load_sample_images().images
    for picture in photographs:
        grey = torch.tensor(picture, dtype=torch.float32).mean(2)[None, None] / 255
        small = functional.avg_pool2d(grey, 4)[0, 0]
        pictures.append(small.chunk(2, 1)[side])
    high, wide = pictures[0].shape
    rows = torch.randint(high - SIDE + 1, (n,), generator=draw).tolist()
    columns = torch.randint(wide - SIDE + 1, (n,), generator=draw).tolist()
    return torch.stack([
        pictures[i % 2][a : a + SIDE, b : b + SIDE]
        for i, (a, b) in enumerate(zip(rows, columns, strict=True))
    ])[:, None]  # fmt: skip


def _holes(n: int, draw: torch.Generator) -> Tensor:
    """Return the mask of hidden pixels: a square with a quarter of each patch."""
    first = torch.randint(SIDE - HOLE + 1, (2, n, 1), generator=draw)
    inside = (torch.arange(SIDE) >= first) & (torch.arange(SIDE) < first + HOLE)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _filled(net: nn.Module, x: Tensor, hole: Tensor) -> Tensor:
    seen = torch.where(hole, 0.5, x)
    return net(torch.cat([seen, hole.float()], 1))


def _learn(net: nn.Module, x: Tensor, seed: int, steps: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        hole = _holes(len(rows), draw)
        return (_filled(net, x[rows], hole) - x[rows])[hole].abs().mean()

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=RATE, batch=32)


@torch.no_grad()
def moved_by_hidden(net: nn.Module, x: Tensor, hole: Tensor, replaced: Tensor) -> float:
    """Return how far what is painted moves where noise replaces some of the pixels."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    pair = [_filled(net, rows, hole) for rows in (x, torch.where(replaced, noise, x))]
    return float((pair[0] - pair[1]).abs().mean())


@torch.no_grad()
def _quality(net: nn.Module, x: Tensor, seed: int) -> float:
    """Return the peak signal-to-noise ratio in the holes of test patches."""
    hole = _holes(len(x), torch.Generator().manual_seed(seed + 1))
    error = (_filled(net, x, hole).clamp(0, 1) - x)[hole].square().mean()
    return -10 * math.log10(float(error))
