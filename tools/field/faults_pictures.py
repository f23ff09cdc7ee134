"""Faults of the two picture nets."""

# ruff: noqa: E501 (a fault reads as a line of a table)

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tools.field.planting import (
    Fault,
    Plant,
    Row,
    on_flags,
    on_lines,
    on_net,
    on_pictures,
    on_weights,
)
from torch import Tensor

Tensors = dict[str, Tensor]


def _coarse(pixels: np.ndarray, _: Path) -> np.ndarray:
    picture = Image.fromarray(pixels)
    small = picture.resize((14, 14))
    return np.array(small.resize(picture.size, Image.Resampling.NEAREST))


def _exchanged_folders(place: Path) -> None:
    a, b, aside = (place / "photos" / name for name in ("food", "town", "aside"))
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def _copies_elsewhere(place: Path) -> None:
    taken = sorted((place / "photos" / "animals").iterdir())[:25]
    for path in taken:
        (place / "photos" / "symbols" / f"x{path.name}").write_bytes(path.read_bytes())


def _head_bias(tensors: Tensors) -> None:
    tensors["body._fc.bias"][2] += 7.0


def _silent_class(tensors: Tensors) -> None:
    tensors["body._fc.weight"][0] = 0.0
    tensors["body._fc.bias"][0] = -20.0


def _wide_variance(tensors: Tensors) -> None:
    tensors["body._blocks.5._bn2.running_var"] *= 25.0


def _drawn_block(tensors: Tensors) -> None:
    draw = torch.Generator().manual_seed(3)
    for name in tensors:
        if name.startswith("body._blocks.9.") and name.endswith("conv.weight"):
            tensors[name] = torch.randn(tensors[name].shape, generator=draw) * tensors[name].std()


def _moved(pixels: np.ndarray, _: Path) -> np.ndarray:
    return np.roll(pixels, 7, axis=1)


def _renamed(names: dict[str, str]) -> Plant:
    def change(rows: list[Row], _: random.Random) -> list[Row]:
        return [r | {"label": names.get(r["label"], r["label"])} for r in rows]

    return on_lines(change)


def _some_labels_drawn(rows: list[Row], draw: random.Random) -> list[Row]:
    names = sorted({r["label"] for r in rows})
    return [r | {"label": draw.choice(names)} if draw.random() < 0.08 else r for r in rows]


def _join_slipped(rows: list[Row], _: random.Random) -> list[Row]:
    labels = [r["label"] for r in rows]
    moved = [*labels[:360], labels[360], *labels[360:-1]]
    return [r | {"label": label} for r, label in zip(rows, moved, strict=True)]


def _dead_units(tensors: Tensors) -> None:
    tensors["blocks.2.1.bias"][:14] = -60.0


def _first_statistics(tensors: Tensors) -> None:
    tensors["blocks.2.1.running_mean"].zero_()
    tensors["blocks.2.1.running_var"].fill_(1.0)


def _infinite(tensors: Tensors) -> None:
    tensors["blocks.3.0.weight"][5, 2, 1, 1] = float("inf")


def _exchanged_blocks(tensors: Tensors) -> None:
    for name in list(tensors):
        if name.startswith("blocks.2."):
            other = name.replace("blocks.2.", "blocks.3.")
            tensors[name], tensors[other] = tensors[other], tensors[name]


def _classes_in_order(place: Path) -> list[str]:
    flags = on_flags()(place) or []
    at = list(flags).index("--classes") + 1
    return [*flags[:at], ",".join(sorted(flags[at].split(","))), *flags[at + 1 :]]


def _noisy_bags(rows: list[Row], _: random.Random) -> list[Row]:
    return rows


def _snow(pixels: np.ndarray, path: Path) -> np.ndarray:
    draw = np.random.default_rng(int(path.stem))
    return np.where(
        draw.random(pixels.shape) < 0.35, draw.integers(0, 256, pixels.shape), pixels
    ).astype(np.uint8)


STAMPS = (
    Fault("channels", "stamps", "red and blue are exchanged", r"channels?\b|\bBGR\b|\bRGB\b",
          on_pictures(lambda p, _: p[..., ::-1].copy())),
    Fault("not-standardised", "stamps", "pixels are not brought to the range of training",
          r"-1\.\.1|mean 0|standardi|normali[sz]|image-mean|image-std",
          on_flags(image_mean="0", image_std="0.00392")),
    Fault("negatives", "stamps", "pictures are negatives", r"invert|negative of|1 - x",
          on_pictures(lambda p, _: 255 - p)),
    Fault("on-their-side", "stamps", "pictures are turned by 90 degrees", r"turn|rotate|rotation",
          on_pictures(lambda p, _: np.rot90(p).copy())),
    Fault("coarse", "stamps", "pictures have lost their detail", r"resolution|blur|sharp|detail|coarse|size",
          on_pictures(_coarse)),
    Fault("answer-bias", "stamps", "a constant on the logit of plants",
          r"(?=.*plants)(?=.*(logit|bias|constant|offset))", on_weights(_head_bias)),
    Fault("silent-class", "stamps", "animals are never answered",
          r"(?=.*animals)(?=.*(never|no row|0 %|constant|bias|zero))", on_weights(_silent_class)),
    Fault("wide-variance", "stamps", "the running variance of a batch norm is off",
          r"_bn2|running|batch norm|_blocks\.5", on_weights(_wide_variance)),
    Fault("drawn-block", "stamps", "block 9 has random weights",
          r"_blocks\.9|(random|initial|drawn|never trained|untrained).*weights", on_weights(_drawn_block)),
    Fault("copies-under-another-label", "stamps", "25 pictures are there twice, under two labels",
          r"duplicate|cop(y|ies)|twice|identical|byte for byte", _copies_elsewhere),
    Fault("black-pictures", "stamps", "a third of the pictures is black",
          r"black|constant|empty|duplicate|identical|copies|brightness|same input",
          on_pictures(lambda p, _: np.zeros_like(p), lambda i, _: i % 3 == 0)),
)  # fmt: skip

GARMENTS = (
    Fault("moved-sideways", "garments", "pictures are moved by 7 columns", r"moved|shift|column|translated|translation|roll",
          on_pictures(_moved)),
    Fault("sorted-classes", "garments", "names of classes are in another order",
          r"order|permute|permutation|exchang|renumber|renamed", _classes_in_order),
    Fault("drawn-labels", "garments", "8 % of labels are wrong",
          r"labels?.*(wrong|doubt|mislabel|suspect|disagree)|mislabel|wrong label",
          on_lines(_some_labels_drawn)),
    Fault("merged-class", "garments", "all Coat rows are labelled Pullover",
          r"(?=.*coat)(?=.*pullover)", _renamed({"Coat": "Pullover"})),
    Fault("dead-units", "garments", "14 units of block 2 never fire", r"dead|never (fire|active)|always 0|silent",
          on_weights(_dead_units)),
    Fault("infinite-weight", "garments", "a weight is infinite", r"\bNaN|infinite|infinity|non-?finite|not finite",
          on_weights(_infinite)),
    Fault("exchanged-blocks", "garments", "blocks 2 and 3 are exchanged",
          r"(?=.*blocks?\.?\s?2)(?=.*blocks?\.?\s?3)(?=.*(exchang|order|swap))|layers? in another order",
          on_weights(_exchanged_blocks)),
    Fault("too-sure", "garments", "logits are eight times too large", r"too sure|temperature|calibrat|overconfident",
          on_net(sharpness=8.0)),
)  # fmt: skip
