"""A small generator of coloured digits on coloured backgrounds from words, and its data.

A canvas of 10 x 10 holds the mean shape of a digit, 8 x 8, in its middle. Places are queries; in
each block they look at the words and, where ``image`` is set, at the tokens of a picture. Truth is
what was asked for: the digit, the colour of its ink, the colour of the ground.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad, scaled_dot_product_attention, unfold

from sonde.layers import DecoupledCrossAttention, conditioned, inserted_layers
from sonde_studies.arms import trained_once
from sonde_studies.worlds.learning import digit_images, drawn, minimise

SIDE, DIM, HEADS, BLOCKS = 10, 32, 4, 2
DIGITS, COLOURS = 10, 6
BATCH, RATE = 16, 5e-3
SILENT = -1
"""In place of a word that is not said."""
GROUND = 0.4
"""Brightness of the ground: no ink is as dark."""


@dataclass(frozen=True)
class Canvases:
    """Images and their contents.

    Parameters
    ----------
    picture : Float[Tensor, "canvas 3 10 10"]
    digit : Int[Tensor, "canvas"]
    ink, ground : Float[Tensor, "canvas 3"]
        Colours, the ground's as bright as an ink's.
    inside : Float[Tensor, "canvas 10 10"]
        1 in the square of the digit, 0 around it.
    """

    picture: Tensor
    digit: Tensor
    ink: Tensor
    ground: Tensor
    inside: Tensor


def colours_of(word: Int[Tensor, "canvas"], draw: torch.Generator) -> Float[Tensor, "canvas 3"]:
    """Return the colours of words, from the colour cube's corners; random if unspecified."""
    corners = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    free = torch.rand(len(word), 3, generator=draw)
    free = free / free.amax(1, keepdim=True)
    return torch.where(word[:, None] == SILENT, free, corners[word].float())


def paint(
    shape: Float[Tensor, "canvas 1 8 8"],
    digit: Int[Tensor, "canvas"],
    ink: Float[Tensor, "canvas 3"],
    ground: Float[Tensor, "canvas 3"],
) -> Canvases:
    """Return digits in their ink colours on their backgrounds."""
    margin = (SIDE - shape.shape[-1]) // 2
    amount = pad(shape, [margin] * 4)
    over, under = ink[:, :, None, None], GROUND * ground[:, :, None, None]
    inside = pad(torch.ones_like(shape), [margin] * 4)[:, 0]
    return Canvases(amount * over + (1 - amount) * under, digit, ink, ground, inside)


class Block(nn.Module):
    """Attention from positions to words, then an MLP.

    With ``image`` one softmax goes over words and an image's tokens. A softmax of its own for the
    image is inserted from outside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.query, self.key = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.value, self.out = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.ReLU(), nn.Linear(4 * DIM, DIM))
        self.image: DecoupledCrossAttention | None = None

    def forward(self, x: Tensor, words: Tensor, source: Tensor | None) -> Tensor:
        """Return the states of the places, after words (canvas, word, dim) and a source."""
        queries = _heads(self.query(self.before(x)))
        keys, values = _heads(self.key(words)), _heads(self.value(words))
        if self.image is not None and source is not None:
            keys = torch.cat((keys, _heads(self.image.key(source))), 2)
            values = torch.cat((values, _heads(self.image.value(source))), 2)
        heads = scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)


class Painter(nn.Module):
    """Generator of images from three words each: digit, ink and background.

    Words have shape (canvas, 3); ``SILENT`` is also a word. Once ``sees`` is set, a second
    picture is cut into four tokens that each block attends to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(1 + n, DIM) for n in (DIGITS, COLOURS, COLOURS))
        self.places = nn.Parameter(torch.randn(SIDE * SIDE, DIM))
        self.blocks: Any = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 3))
        self.sees: nn.Module | None = None

    def states(self, words: Tensor, seen: Tensor | None = None) -> list[Tensor]:
        """Return the states of all positions after each block, (canvas, position, dim)."""
        named = zip(self.words, words.T, strict=True)
        said = torch.stack([word(ids + 1) for word, ids in named], 1)
        source = None
        if seen is not None and self.sees is not None:
            source = self.sees(unfold(seen, SIDE // 2, stride=SIDE // 2).transpose(1, 2))
        found = [self.places.expand(len(words), -1, -1)]
        read = nullcontext()
        if source is not None and inserted_layers(self):
            read = conditioned(self, source)
        with read:
            for block in self.blocks:
                found.append(block(found[-1], said, source))
        return found[1:]

    def forward(self, words: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return images (canvas, 3, 10, 10)."""
        return as_map(self.last(self.states(words, seen)[-1]))


def as_map(x: Float[Tensor, "canvas place dim"]) -> Float[Tensor, "canvas dim 10 10"]:
    """Return the states of positions as a map."""
    return x.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def colours_in(
    picture: Float[Tensor, "canvas 3 10 10"], shape: Float[Tensor, "canvas 10 10"]
) -> tuple[Float[Tensor, "canvas 3"], Float[Tensor, "canvas 3"]]:
    """Return an image's ink and background colours by least squares for a known shape."""
    amount = shape.flatten(1)
    parts = torch.stack((amount, GROUND * (1 - amount)), 2)
    # the default driver, gelsy, gives other last bits in some of its calls
    rows = picture.flatten(2).transpose(1, 2)
    found = torch.linalg.lstsq(parts, rows, driver="gelsd").solution
    return found[:, 0], found[:, 1]


def explained(found: Float[Tensor, "canvas 3"], wanted: Float[Tensor, "canvas 3"]) -> float:
    """Return the explained variance of colours; 1 is perfect, 0 equals their mean."""
    away = (wanted - wanted.mean(0)).square().sum()
    return float(1 - (found - wanted).square().sum() / away)


def digit_in(
    picture: Float[Tensor, "canvas 3 10 10"], shapes: Float[Tensor, "kind 10 10"]
) -> Int[Tensor, "canvas"]:
    """Return the shape that explains each image best, for any ink and background."""
    left = []
    for shape in shapes:
        ink, ground = colours_in(picture, shape.expand(len(picture), SIDE, SIDE))
        over, under = ink[:, :, None, None], GROUND * ground[:, :, None, None]
        left.append((picture - shape * over - (1 - shape) * under).square().sum((1, 2, 3)))
    return torch.stack(left).argmin(0)


@dataclass(frozen=True)
class Studio:
    """A generator, and the mean shape of each digit, (digit, 1, 8, 8)."""

    painter: Painter
    shape: Tensor

    def paint(
        self, digit: Int[Tensor, "canvas"], ink: Float[Tensor, "canvas 3"], ground: Tensor
    ) -> Canvases:
        """Return digits in their ink colours on their backgrounds."""
        return paint(self.shape[digit], digit, ink, ground)

    @property
    def on_canvas(self) -> Float[Tensor, "digit 10 10"]:
        """The shapes of the digits, as amounts of ink."""
        return pad(self.shape, [(SIDE - self.shape.shape[-1]) // 2] * 4)[:, 0]

    def judged(
        self, picture: Float[Tensor, "canvas 3 10 10"], digit: Tensor, wanted: Canvases
    ) -> dict[str, float]:
        """Return the fraction of images that show the digit, and how well colours match.

        Colours of pictures that show another digit count as they come.
        """
        ink, ground = colours_in(picture, self.on_canvas[digit])
        return {
            "digit": float((digit_in(picture, self.on_canvas) == digit).double().mean()),
            "ink": explained(ink, wanted.ink),
            "ground": explained(ground, wanted.ground),
        }


def correlation(found: Float[Tensor, "canvas 3"], other: Float[Tensor, "canvas 3"]) -> float:
    """Return the correlation of colours over images, averaged over channels."""
    both = zip(found.T, other.T, strict=True)
    return float(torch.stack([torch.corrcoef(torch.stack(two))[0, 1] for two in both]).mean())


@trained_once
def studio(seed: int, steps: int = 300) -> Studio:
    """Train a generator, cached and shared; train only copies of it."""
    images, digit = digit_images(seed)
    mean = torch.stack([images[digit == k].mean(0) for k in range(DIGITS)])
    at = Studio(drawn(Painter, seed), mean / mean.amax((1, 2, 3), keepdim=True))
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        words = random_words(rows, draw)
        canvas = at.paint(rows, *(colours_of(w, draw) for w in words.T[1:]))
        return mse_loss(at.painter(words), canvas.picture)

    minimise(loss, at.painter.parameters(), DIGITS, steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return at


def random_words(
    digit: Int[Tensor, "canvas"], draw: torch.Generator, silent: float = 0.4
) -> Int[Tensor, "canvas 3"]:
    """Return words for the digits, with or without ink and background."""
    n = len(digit)
    words = torch.randint(COLOURS, (n, 2), generator=draw)
    words[torch.rand(n, 2, generator=draw) < silent] = SILENT
    return torch.cat((digit[:, None], words), 1)
