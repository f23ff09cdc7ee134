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
    data = "two photographs in patches of 40 x 40; each trains in turn, and the other judges"
    claims = (
        Claim("neighbours", "Correlations of neighbours tell them.",
              "accuracy on the other picture, less 0.5"),
        Claim("channels", "So do correlations of channels.",
              "accuracy on the other picture, less 0.5"),
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
        both = pictures(draw, TINY if tiny else None)
        sides = [recoloured(p, draw) for p in both]
        plain = [recoloured(p, draw, strength=0.0) for p in both]
        found = {kind: _accuracy(kind, sides, sides) for kind in KINDS}
        pressed = [(functional.avg_pool2d(x, 3, 1, 1), changed) for x, changed in sides]
        return {
            "neighbours": found["neighbours"] - 0.5,
            "channels": found["channels"] - 0.5,
            "both": found["both"] - found["channels"],
            "blurred": found["channels"] - _accuracy("channels", sides, pressed),
            "same": _accuracy("both", plain, plain),
            **{f"accuracy | {kind}": v for kind, v in found.items()},
        }


def pictures(draw: torch.Generator, n: int | None) -> list[Tensor]:
    """Return patches of each picture, values in 0..1: up to ``n`` of either half."""
    found: Any = load_sample_images().images
    stacks = list[Tensor]()
    for picture in found:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        stacks.append(torch.cat([patches_of(half, draw)[:n] for half in x.chunk(2, 2)]))
    return stacks


def _accuracy(
    kind: str, train: list[tuple[Tensor, Tensor]], test: list[tuple[Tensor, Tensor]]
) -> float:
    """Return the mean accuracy of heads that learn on one picture, on the other."""
    right = list[float]()
    for (x, changed), (seen, truth) in zip(train, reversed(test), strict=True):
        head = linear_head().fit(features(kind, x).numpy(), changed.numpy())
        right.append(float(head.score(features(kind, seen).numpy(), truth.numpy())))
    return sum(right) / len(right)
