"""Were the colours of a picture changed: correlations of neighbours and of channels.

Patches of the two photographs that scikit-learn ships, recoloured by curves and by mixing channels.
"""

from typing import Any, final

import torch
from sklearn.datasets import load_sample_images  # pyright: ignore
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.layers import SecondOrder
from sonde_studies.study import Claim, Figures, Study, Tick

SIZE, TINY = 40, 24
LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))


@final
class RecolourStudy(Study):
    """Half of the patches of two photographs, recoloured, told from the other half."""

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
    )  # fmt: skip
    null = Claim("same", "Pictures that were not recoloured cannot be told.",
                 "accuracy of both", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Recolour, read correlations, and judge on the other half of the photographs."""
        tick("patches")
        draw = torch.Generator().manual_seed(seed)
        left, right = _patches(tiny)
        sides = [_recoloured(p, draw) for p in (left, right)]
        plain = [_recoloured(p, draw, strength=0.0) for p in (left, right)]
        kinds = ("neighbours", "channels", "both")
        found = {kind: _accuracy(kind, *sides) for kind in kinds}
        return {
            "neighbours": found["neighbours"] - 0.5,
            "channels": found["channels"] - 0.5,
            "both": found["both"] - found["channels"],
            "same": _accuracy("both", *plain),
            **{f"accuracy | {kind}": v for kind, v in found.items()},
        }


def _patches(tiny: bool) -> list[Tensor]:
    """Return patches of the left and of the right halves, values in 0..1."""
    pictures: Any = load_sample_images().images
    sides = list[list[Tensor]]([[], []])
    for picture in pictures:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        half = x.shape[2] // 2
        for side, part in zip(sides, (x[:, :, :half], x[:, :, half:]), strict=True):
            cut = part.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE)
            side.append(cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE))
    found = [torch.cat(side) for side in sides]
    return [side[:TINY] for side in found] if tiny else found


def _recoloured(x: Tensor, draw: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return patches after a random half was recoloured, and which were."""
    changed = torch.rand(len(x), generator=draw) < 0.5
    curve = 1 + strength * 0.8 * (torch.rand(len(x), 3, 1, 1, generator=draw) - 0.5)
    mixing = strength * 0.5 * torch.rand(len(x), 3, 3, generator=draw)
    mixing = torch.eye(3) * (1 - mixing.sum(2, keepdim=True)) + mixing
    made = torch.einsum("ncd,ndhw->nchw", mixing, x.clamp(min=1e-6) ** curve).clamp(0, 1)
    made = (made * 255).round() / 255
    return torch.where(changed[:, None, None, None], made, (x * 255).round() / 255), changed


def _features(kind: str, x: Tensor) -> Tensor:
    parts = list[Tensor]()
    if kind != "channels":
        parts.append(SecondOrder("spatial", 3, lags=LAGS)(x).flatten(1))
    if kind != "neighbours":
        high = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]  # what differs between neighbours
        for v in (x, high):
            flat = v.flatten(2)
            flat = flat - flat.mean(2, keepdim=True)
            unit = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-6)
            gram = unit @ unit.transpose(1, 2)
            parts.append(gram[:, [0, 0, 1], [1, 2, 2]])
    return torch.cat(parts, 1)


def _accuracy(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    head.fit(_features(kind, train[0]).numpy(), train[1].numpy())
    return float(head.score(_features(kind, test[0]).numpy(), test[1].numpy()))
