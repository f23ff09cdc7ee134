"""Attention to a subject's picture, trained with the attention to words switched off.

The generator of ``painter`` is frozen. Keys and values for a picture learn to paint the subject of
the picture: a handwritten digit in its ink. A second run, of words alone, gives the mean of its
states: the ground that words name.
"""

import copy
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import sonde
from sonde.edit import Inject
from sonde.layers import DecoupledCrossAttention, inserted_layers
from sonde.tap import Tap
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.imitator import RATE
from sonde_studies.worlds.learning import digit_images, drawn, minimise
from sonde_studies.worlds.painter import (
    BATCH,
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
    studio,
)
from sonde_studies.worlds.subjects import FIT, LAST, Asked, as_amounts, asked, kept

STEPS, BOTH = 1000, 1.0


@final
class IdentityStreamStudy(Study):
    """Pictures of new subjects, read without words or with words that name another ground."""

    name = "identity-stream"
    title = "does attention to a picture learn more of its subject with the words switched off?"
    paper = "wu2024infiniteid"
    fidelity = (
        "toy size: handwritten digits for faces, an attention net of two blocks for a diffusion "
        "model, four tokens of the picture by a small net; the merge by means as published, after "
        "the last block; mixed attention is tried in ``joined-attention``; the steps were chosen "
        "on seed 100"
    )
    data = "handwritten digits in an ink on a ground, named by words or shown by a picture"
    seconds = 40.0
    claims = (
        Claim("own", "Read without words, attention that was trained without them paints more of "
              "the subject than attention that was trained beside words.",
              "share of the variance of the subject, words off less on in training",
              arms=("words off", "words on")),
        Claim("beside words", "It paints as much of it, to 5 points, as attention that was trained "
              "beside words and reads the digit's name.",
              "share of the variance of the subject, difference and 0.05",
              arms=("words off", "words on, named")),
        Claim("ground", "Given the mean of a run of words, it follows a ground that words name "
              "more than attention that reads words and picture in one run.",
              "share of the variance of grounds, two runs less one; the second run is not trained",
              arms=("words off", "words on, named")),
        Claim("subject kept", "It then keeps the subject as well, to 5 points.",
              "share of the variance of the subject, two runs less one, and 0.05",
              arms=("words off", "words on, named")),
    )  # fmt: skip
    null = Claim("unrelated", "The ink has nothing of the picture that another canvas is given.",
                 "correlation, mean of three channels, words off")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train attention to pictures in both ways, and paint new subjects."""
        tick("painter")
        at = studio(seed, 10) if tiny else studio(seed)
        of = asked(seed, 50 if tiny else 400)
        nets = dict[str, Painter]()
        for name, scale in (("words off", 0.0), ("words on", BOTH)):
            tick(name)
            nets[name] = trained_on_subjects(at, seed, 20 if tiny else STEPS, first_scale=scale)
        note_again("words on, named", "words on")
        off, on = nets.values()
        named = of.named.clone()
        named[:, 1:] = SILENT
        own = replace(of, wanted=of.seen)
        free = {
            "words off": kept(at, painted(off, of, 0.0), own),
            "words on": kept(at, painted(on, of, 0.0), own),
            "words on, named": kept(at, painted(on, of, BOTH, named), own),
        }
        worded = {
            "words off": kept(at, painted(off, of, 0.0), of),
            "words off, mean": kept(at, merged(at, off, of), of),
            "words on, mean": kept(at, merged(at, on, of), of),
            "words on, named": kept(at, painted(on, of, BOTH), of),
        }
        best, two, one = free["words off"], worded["words off, mean"], worded["words on, named"]
        return {
            "own": best["subject"] - free["words on"]["subject"],
            "beside words": best["subject"] - free["words on, named"]["subject"] + 0.05,
            "ground": two["ground"] - one["ground"],
            "subject kept": two["subject"] - one["subject"] + 0.05,
            "unrelated": strangers_ink(off, of),
            **{f"{name}, own ground | {k}": v for name, row in free.items()
               for k, v in row.items()},
            **{f"{name}, named ground | {k}": v for name, row in worded.items()
               for k, v in row.items()},
        }  # fmt: skip


def trained_on_subjects(at: Studio, seed: int, steps: int, first_scale: float) -> Painter:
    """Return a generator whose keys and values for a picture learned to paint its subject.

    Words name the digit, and the ground in half of the pictures, never the ink.

    Parameters
    ----------
    at : Studio
    seed, steps : int
    first_scale : float
        Weight of the attention to words in training; 0 switches it off.
    """
    net = copy.deepcopy(at.painter).requires_grad_(False)
    own = [DecoupledCrossAttention.of(b.key.weight, b.value.weight, HEADS) for b in net.blocks]
    net: Any = sonde.inserted(net, {f"blocks.{i}": layer for i, layer in enumerate(own)})
    _switch(net, first_scale)
    into = drawn(lambda: nn.Linear(3 * SIDE * SIDE // 4, DIM), seed)
    net.sees = nn.Sequential(into, nn.ReLU(), drawn(lambda: nn.Linear(DIM, DIM), seed))
    images, digit = digit_images(seed)
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        words = random_words(digit[rows], draw, 0.5)
        words[:, 1] = SILENT
        ink, ground = (colours_of(said, draw) for said in words.T[1:])
        picture = paint(as_amounts(images[rows]), digit[rows], ink, ground).picture
        return mse_loss(net(words, picture), picture)

    learned = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, learned, FIT, steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return net


def _switch(net: Painter, first_scale: float) -> None:
    layers: list[Any] = [*inserted_layers(net).values()]
    for layer in layers:
        layer.first_scale = first_scale


@torch.no_grad()
def painted(
    net: Painter, of: Asked, first_scale: float, words: Tensor | None = None, late: int = 0
) -> Float[Tensor, "canvas 3 high wide"]:
    """Return images of the subjects, with words at a weight.

    Parameters
    ----------
    net : Painter
    of : Asked
    first_scale : float
    words : Tensor, optional
        By default those that name the wanted ground.
    late : int, default=0
        Each canvas gets the picture of a canvas before it.
    """
    _switch(net, first_scale)
    return net(of.words if words is None else words, of.seen.picture.roll(late, 0))


@torch.no_grad()
def merged(at: Studio, net: Painter, of: Asked) -> Float[Tensor, "canvas 3 high wide"]:
    """Return images of the stream without words, with the mean of a run of words alone."""
    with Tap(at.painter, LAST) as tap:
        tap.run(of.words)
    source = {"source": dict(tap.rows)}
    with sonde.editing(net, Inject(), LAST, others=source):
        return painted(net, of, 0.0)


def strangers_ink(net: Painter, of: Asked, late: int = 0) -> float:
    """Return the correlation of the painted ink with that of the canvas before."""
    ink = colours_in(painted(net, of, 0.0, late=late), of.amount)[0]
    return correlation(ink, of.seen.ink.roll(1, 0))
