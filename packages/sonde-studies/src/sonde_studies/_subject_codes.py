"""Encoders of a subject that are trained on their own, and adapters that read their tokens.

A picture of a subject is that of ``worlds.subjects``: a handwritten digit in its ink, on a ground
that is not the subject's. Encoders are transformers over patches, and frozen before an adapter
reads them, so that adapters of one size differ in what they read alone.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss, unfold

import sonde
from sonde.layers import DecoupledCrossAttention, SourceFusion, conditioned, shuffle_sources
from sonde.train import Contrast
from sonde_studies.arms import trained_once
from sonde_studies.worlds.learning import digit_images, drawn, minimise
from sonde_studies.worlds.painter import (
    DIM,
    HEADS,
    SIDE,
    SILENT,
    Painter,
    Studio,
    colours_in,
    colours_of,
    correlation,
    paint,
    random_words,
)
from sonde_studies.worlds.subjects import FIT, Asked, as_amounts, kept

PATCH, STEPS, RATE, BATCH = 2, 300, 3e-3, 16
TOKENS = (SIDE // PATCH) ** 2
Kind = Literal["rebuild", "recognise"]


class PatchEncoder(nn.Module):
    """A transformer over patches, and a map that rebuilds them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * PATCH * PATCH, DIM)
        self.places = nn.Parameter(0.1 * torch.randn(TOKENS, DIM))
        self.block = nn.TransformerEncoderLayer(
            DIM, HEADS, 2 * DIM, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)
        self.head = nn.Linear(DIM, 3 * PATCH * PATCH)

    def forward(
        self, picture: Float[Tensor, "canvas 3 high wide"]
    ) -> Float[Tensor, "canvas token dim"]:
        """Return the tokens of pictures."""
        return self.norm(self.block(self.embed(patches(picture)) + self.places))


def patches(picture: Float[Tensor, "canvas 3 high wide"]) -> Float[Tensor, "canvas token value"]:
    """Return the patches of pictures."""
    return unfold(picture, PATCH, stride=PATCH).transpose(1, 2)


def twins(
    images: Float[Tensor, "image 1 8 8"], digit: Int[Tensor, "image"], draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return two pictures of each subject, in one ink on two grounds."""
    free = torch.full_like(digit, SILENT)
    amount, ink = as_amounts(images), colours_of(free, draw)
    one, two = (paint(amount, digit, ink, colours_of(free, draw)).picture for _ in range(2))
    return one, two


@trained_once
def encoder(seed: int, kind: Kind, steps: int = STEPS, first: int = 0) -> PatchEncoder:
    """Return a frozen encoder, trained on pairs of pictures of a subject on two grounds.

    Parameters
    ----------
    seed : int
    kind : {"rebuild", "recognise"}
        Tokens that rebuild the picture that they were read from, or that find the other picture of
        the subject among those of a batch.
    steps : int
    first : int, default=0
        Added to the seed for the first weights.
    """
    net = drawn(PatchEncoder, seed + first)
    images, digit = digit_images(seed)
    draw, contrast = torch.Generator().manual_seed(seed), Contrast(0.1)

    def loss(rows: Tensor) -> Tensor:
        both = torch.cat(twins(images[rows], digit[rows], draw))
        found = net(both)
        if kind == "rebuild":
            return mse_loss(net.head(found), patches(both))
        return contrast(found.mean(1), view=torch.arange(2).repeat_interleave(len(rows)))

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed, rate=RATE, batch=2 * BATCH)
    return net.requires_grad_(False)


class Adapted(nn.Module):
    """A frozen generator whose places attend to tokens of encoders beside the words.

    Parameters
    ----------
    at : Studio
    encoders : sequence of PatchEncoder
        Their states of a patch become one token.
    seed : int
    """

    def __init__(self, at: Studio, encoders: Sequence[PatchEncoder], seed: int) -> None:
        super().__init__()
        net = copy.deepcopy(at.painter).requires_grad_(False)
        own = [DecoupledCrossAttention.of(b.key.weight, b.value.weight, HEADS) for b in net.blocks]
        at_blocks = {f"blocks.{i}": layer for i, layer in enumerate(own)}
        self.painter: Painter = sonde.inserted(net, at_blocks)
        self.encoders = nn.ModuleList(encoders)
        self.joins = drawn(lambda: SourceFusion([DIM] * len(encoders), DIM), seed)
        self.into = drawn(lambda: nn.Linear(DIM, DIM), seed)

    def tokens(self, picture: Float[Tensor, "canvas 3 high wide"]) -> Tensor:
        """Return the tokens of pictures, (canvas, token, dim)."""
        states = [net(picture).flatten(0, 1) for net in self.encoders]
        return self.into(self.joins(*states)).unflatten(0, (-1, TOKENS))

    def forward(
        self, words: Int[Tensor, "canvas 3"], picture: Float[Tensor, "canvas 3 high wide"]
    ) -> Tensor:
        """Return images of words and of the subjects of pictures."""
        with conditioned(self.painter, self.tokens(picture)):
            return self.painter(words)


def adapter(
    at: Studio,
    seed: int,
    encoders: Sequence[PatchEncoder],
    steps: int = STEPS,
    shuffled: float = 0.0,
) -> Adapted:
    """Return a generator that learned to paint the subject of a picture.

    Words name the digit, and the ground in half of the pictures, never the ink.

    Parameters
    ----------
    at : Studio
    seed : int
    encoders : sequence of PatchEncoder
    steps : int
    shuffled : float, default=0.0
        Fraction that reads another picture of the subject, on another ground than it paints.
    """
    net = Adapted(at, encoders, seed)
    images, digit = digit_images(seed)
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        n = len(rows)
        words = random_words(digit[rows], draw, 0.5)
        words[:, 1] = SILENT
        amount, ink = as_amounts(images[rows]), colours_of(words[:, 1], draw)
        wanted, other = (
            paint(amount, digit[rows], ink, colours_of(said, draw)).picture
            for said in (words[:, 2], words[:, 1])
        )
        subject, turn = torch.arange(n).repeat(2), int(torch.randint(2**31, (1,), generator=draw))
        read = shuffle_sources(subject, shuffled, seed=turn)[:n]
        return mse_loss(net(words, torch.cat((wanted, other))[read]), wanted)

    learned = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, learned, FIT, steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return net


@torch.no_grad()
def read_from(at: Studio, net: Adapted, of: Asked) -> dict[str, float]:
    """Return ``kept`` of the subjects on the grounds that words name."""
    return kept(at, net(of.words, of.seen.picture), of)


@torch.no_grad()
def strangers_ink(net: Adapted, of: Asked, late: int = 0) -> float:
    """Return the correlation of the painted ink with that of the canvas before.

    Parameters
    ----------
    net : Adapted
    of : Asked
    late : int, default=0
        Each canvas gets the picture of a canvas before it.
    """
    ink = colours_in(net(of.words, of.seen.picture.roll(late, 0)), of.amount)[0]
    return correlation(ink, of.seen.ink.roll(1, 0))
