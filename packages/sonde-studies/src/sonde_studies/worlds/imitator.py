"""Image generators trained to follow another image's colours, through attention alone."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import sonde
from sonde.edit import increment_penalty
from sonde.layers import DecoupledCrossAttention, drop_sources, inserted_layers
from sonde_studies.worlds.learning import drawn, minimise
from sonde_studies.worlds.painter import (
    BATCH,
    DIGITS,
    DIM,
    HEADS,
    SIDE,
    SILENT,
    Canvases,
    Painter,
    Studio,
    as_map,
    colours_in,
    colours_of,
    correlation,
    explained,
    random_words,
)

STEPS, RATE = 300, 3e-3


def imitator(
    at: Studio,
    seed: int,
    steps: int = STEPS,
    *,
    penalty: float = 0.0,
    everywhere: bool = False,
    joint: bool = False,
) -> Painter:
    """Return a generator with trained keys and values for a second image, all else frozen.

    It learns to paint a digit in the ink and on the ground of the picture of another digit. Words
    name the digit, in half of the cases the ground, never the ink.

    Parameters
    ----------
    at : Studio
    seed, steps : int
    penalty : float, default=0.0
        Weight of ``increment_penalty`` after each block, outside the square of the digit.
    everywhere : bool, default=False
        The penalty is on changes inside the square as well.
    joint : bool, default=False
        With one softmax over words and picture instead of two.
    """
    net = copy.deepcopy(at.painter).requires_grad_(False)
    own = [DecoupledCrossAttention.of(b.key.weight, b.value.weight, HEADS) for b in net.blocks]
    if joint:
        for block, layer in zip(net.blocks, own, strict=True):
            block.image = layer
    else:
        net = sonde.inserted(net, {f"blocks.{i}": layer for i, layer in enumerate(own)})
    into = drawn(lambda: nn.Linear(3 * SIDE * SIDE // 4, DIM), seed)
    net.sees = nn.Sequential(into, nn.ReLU(), drawn(lambda: nn.Linear(DIM, DIM), seed))
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        other = torch.randint(DIGITS, rows.shape, generator=draw)
        words = random_words(rows, draw, 0.5)
        words[:, 1] = SILENT
        colours = colours_of(words[:, 1], draw), colours_of(words[:, 2], draw)
        wanted, seen = at.paint(rows, *colours), at.paint(other, *colours).picture
        drop = int(torch.randint(2**31, (1,), generator=draw))
        unsaid, unseen = drop_sources(len(rows), seed=drop)
        words[unsaid], seen[unseen] = SILENT, 0.0
        states = net.states(words, seen)
        found = mse_loss(as_map(net.last(states[-1])), wanted.picture)
        if penalty == 0.0:
            return found
        free = torch.zeros_like(wanted.inside) if everywhere else wanted.inside
        return found + penalty * moved(states, at.painter.states(words), free)

    learned = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, learned, DIGITS, steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return net


def moved(after: list[Tensor], before: list[Tensor], inside: Tensor) -> Float[Tensor, ""]:
    """Return how far states moved outside the squares, summed over blocks."""
    maps = zip(after, before, strict=True)
    return torch.stack([increment_penalty(as_map(x), as_map(y), inside) for x, y in maps]).sum()


@dataclass(frozen=True)
class Order:
    """A request to a generator: words, and an image of another digit to imitate."""

    words: Int[Tensor, "canvas 3"]
    seen: Canvases


def order(at: Studio, seed: int, n: int = 400, grounds: bool = False) -> Order:
    """Return digits by word, images of others in free colours, and other backgrounds by word."""
    draw = torch.Generator().manual_seed(1000 + seed)
    digit, other = torch.randint(DIGITS, (2, n), generator=draw)
    words, free = random_words(digit, draw, 0.0), torch.full_like(digit, SILENT)
    words[:, 1] = SILENT
    if not grounds:
        words[:, 2] = SILENT
    return Order(words, at.paint(other, colours_of(free, draw), colours_of(free, draw)))


@torch.no_grad()
def followed(at: Studio, net: Painter, of: Order, scale: float = 1.0) -> dict[str, float]:
    """Return how far a generated image follows the words and the other image.

    Parameters
    ----------
    at : Studio
    net : Painter
    of : Order
    scale : float, default=1.0
        Of what the other picture adds, where it has a softmax of its own.
    """
    own: list[Any] = [*inserted_layers(net).values()]
    for layer in own:
        layer.scale = scale
    states, digit = net.states(of.words, of.seen.picture), of.words[:, 0]
    picture, plain = as_map(net.last(states[-1])), at.painter.states(of.words)
    for layer in own:
        layer.scale = 1.0
    ink, ground = colours_in(picture, at.on_canvas[digit])
    worded = colours_of(of.words[:, 2], torch.Generator().manual_seed(0))
    return at.judged(picture, digit, of.seen) | {
        "worded ground": explained(ground, worded),
        "moved outside": float(moved(states, plain, of.seen.inside)),
        "moved inside": float(moved(states, plain, 1 - of.seen.inside)),
        "another picture's ink": correlation(ink, of.seen.ink.roll(1, 0)),
    }
