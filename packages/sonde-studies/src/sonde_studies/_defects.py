"""Images of one class, some with a pasted defect, seen by a net trained on other classes.

Debian's Fashion-MNIST where its package is installed, else scikit-learn's digits, enlarged.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde_studies._digits import pixels
from sonde_studies._garments import fashion_mnist
from sonde_studies.arms import note

MOST, SIZE, PATCHES, SQUARES, LEAST_CHANGE = 20_000, 32, 64, (6, 11), 0.15
KINDS, OTHERS, EPOCHS, BATCH = 10, 100, 5, 32
FIT, HELD, TINY = 70, 54, 16
SITE = "middle:out"
DATA = (
    "one class of Fashion-MNIST where Debian's package is installed, else of scikit-learn's digits "
    "enlarged to 32 x 32; defects are squares of 6 to 10 pixels cut from another class; 8 x 8 "
    "patches of 64 units in a small conv net that is trained on the nine other classes"
)


class Backbone(nn.Module):
    """Three convolutions to a grid of patches, and a linear head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        )
        self.head = nn.Linear(64, KINDS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (row, 1, 32, 32)."""
        return self.head(self.middle(x).mean((2, 3)))


@dataclass(frozen=True)
class Objects:
    """A net trained on other classes, images of one class, and the positions of the defects.

    Parameters
    ----------
    fit, usual, clean, defective : Tensor (image, 1, 32, 32)
        To fit on, fresh usual images, and others before and after a defect was pasted.
    mask : Tensor (image, 32, 32)
        Which pixels of ``defective`` were pasted.
    others : Tensor (image, 1, 32, 32)
        Images of the other kinds: the net learned them, and the defects were cut from them.
    other_kind : Tensor (image,)
    """

    model: Backbone
    fit: Tensor
    usual: Tensor
    clean: Tensor
    defective: Tensor
    mask: Tensor
    others: Tensor
    other_kind: Tensor


@cache
def images() -> tuple[Tensor, np.ndarray]:
    """Return images of 32 x 32 in [0, 1] and their class, one of ten."""
    found = fashion_mnist(MOST)
    if found is not None:
        return found
    x, kind = pixels()
    x = x.reshape(-1, 1, 8, 8)
    return functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear"), kind


def objects(seed: int, tiny: bool = False) -> Objects:
    """Choose a class, train a net on the others, and paste parts of their images as defects."""
    draw = np.random.default_rng(seed)
    x, kind = images()
    chosen = int(draw.integers(KINDS))
    mine = draw.permutation(np.flatnonzero(kind == chosen))
    others = draw.permutation(np.flatnonzero(kind != chosen))[: KINDS * OTHERS]
    fit, held = (TINY, TINY) if tiny else (FIT, HELD)
    usual, clean = mine[fit : fit + held], mine[fit + held : fit + 2 * held]
    model = Backbone()
    _train(model, x[others], torch.from_numpy(kind[others]).long(), seed, 1 if tiny else EPOCHS)
    defective, mask = _pasted(x[clean], x[others], draw)
    kinds = torch.from_numpy(kind[others])
    return Objects(model, x[mine[:fit]], x[usual], x[clean], defective, mask, x[others], kinds)


@torch.enable_grad()
def _train(model: nn.Module, x: Tensor, label: Tensor, seed: int, epochs: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.reset_parameters()
        note(rows=len(x))
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(model(x[rows]), label[rows]).backward()
                optimiser.step()
    model.eval()


def _pasted(x: Tensor, others: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return copies with a square from another image, redrawn until it changes the pixels."""
    found, mask = x.clone(), torch.zeros(len(x), SIZE, SIZE, dtype=torch.bool)
    for image, where in zip(found, mask, strict=True):
        while not where.any():
            side = int(draw.integers(*SQUARES))
            top, left, from_top, from_left = draw.integers(2, SIZE - 2 - side, size=4)
            part = slice(top, top + side), slice(left, left + side)
            source = slice(from_top, from_top + side), slice(from_left, from_left + side)
            new = others[int(draw.integers(len(others)))][0][source]
            if float((image[0][part] - new).abs().mean()) > LEAST_CHANGE:
                image[0][part] = new
                where[part] = True
    return found, mask
