"""Detection of recoloured images by correlations of neighbouring pixels and channels.

Patches of the two photographs that scikit-learn ships, recoloured by curves and by mixing channels.
"""

from typing import Any, final

import torch
from sklearn.datasets import load_sample_images  # pyright: ignore
from torch import Tensor
from torch.nn import functional

from sonde_studies.parts.colours import KINDS, features, patches_of, recoloured
from sonde_studies.parts.heads import linear_head
from sonde_studies.study import Claim, Figures, Study, Tick

TINY = 24


@final
class RecolourStudy(Study):
    """Half of the patches of two photographs are recoloured and must be detected."""

    name = "recolour"
    title = "do correlations of neighbours and channels tell recoloured pictures?"
    fidelity = "a linear head on the correlations; the paper trains a network on them"
    data = "two photographs in patches of 40 x 40; the left half trains, the right half judges"
    claims = (
        Claim("neighbours", "Correlations of neighbours tell them.",
              "accuracy on the other half, less 0.5"),
        Claim("channels", "So do correlations of channels.",
              "accuracy on the other half, less 0.5"),
        Claim("both", "Both together tell more than channels alone.",
              "accuracy of both less that of channels"),
        Claim("blurred", "They tell less of patches that were blurred after it.",
              "accuracy of channels, less on patches blurred over 3 x 3 pixels"),
    )  # fmt: skip
    null = Claim("same", "Pictures that were not recoloured cannot be told.",
                 "accuracy of both", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Recolour patches, and test whether the recipe's head detects them."""
        tick("patches")
        draw = torch.Generator().manual_seed(seed)
        left, right = _halves(draw, TINY if tiny else None)
        sides = [recoloured(p, draw) for p in (left, right)]
        plain = [recoloured(p, draw, strength=0.0) for p in (left, right)]
        found = {kind: _accuracy(kind, *sides) for kind in KINDS}
        pressed = [(functional.avg_pool2d(x, 3, 1, 1), changed) for x, changed in sides]
        return {
            "neighbours": found["neighbours"] - 0.5,
            "channels": found["channels"] - 0.5,
            "both": found["both"] - found["channels"],
            "blurred": found["channels"] - _accuracy("channels", sides[0], pressed[1]),
            "same": _accuracy("both", *plain),
            **{f"accuracy | {kind}": v for kind, v in found.items()},
        }


def _halves(draw: torch.Generator, n: int | None) -> list[Tensor]:
    """Return patches of the left and of the right halves, values in 0..1."""
    pictures: Any = load_sample_images().images
    sides = list[list[Tensor]]([[], []])
    for picture in pictures:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        for side, part in zip(sides, x.chunk(2, 2), strict=True):
            side.append(patches_of(part, draw)[:n])
    return [torch.cat(side) for side in sides]


def _accuracy(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    head = linear_head().fit(features(kind, train[0]).numpy(), train[1].numpy())
    return float(head.score(features(kind, test[0]).numpy(), test[1].numpy()))
