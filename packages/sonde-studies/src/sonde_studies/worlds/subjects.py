"""Encoders that map an image of a subject to states for a generator, with or without separation.

A subject is one handwritten digit in its ink; what lies behind it is not the subject. The generator
of ``painter`` is frozen. Its words name the digit and the ground; only the states bring the ink
and the handwriting. Truth is the image of the subject on the ground that is named.
"""

import copy
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, mse_loss, relu

import sonde
from sonde.edit import Inject
from sonde.tap import Tap
from sonde.train import Align, Separate
from sonde_studies.arms import part
from sonde_studies.worlds.learning import digit_images, drawn, minimise
from sonde_studies.worlds.painter import (
    BLOCKS,
    DIM,
    SILENT,
    Canvases,
    Studio,
    colours_in,
    colours_of,
    digit_in,
    explained,
    paint,
    random_words,
)

FIT, STEPS, RATE, BATCH, WIDTH = 1_200, 250, 3e-3, 32, 32
APART = 0.03
"""Weight of the losses that leave the ground out."""
FIRST, LAST = "blocks.0:out", f"blocks.{BLOCKS - 1}:out"
GLOBAL, LOCAL = (FIRST, Inject("add")), (LAST, Inject("add", level="local"))
LEVELS = {"both levels": (GLOBAL, LOCAL), "global": (GLOBAL,), "local": (LOCAL,)}


@dataclass(frozen=True)
class Encoded:
    """States of images, each vector with mean 0 and variance 1.

    Parameters
    ----------
    whole : Float[Tensor, "canvas dim"]
        Of the subject, one for an image.
    places : Float[Tensor, "canvas place dim"]
        Of the subject, one for each position.
    ground : Float[Tensor, "canvas dim"]
        Of what is not the subject.
    """

    whole: Tensor
    places: Tensor
    ground: Tensor


class SubjectEncoder(nn.Module):
    """Two convolutions, a head for each kind of states, and maps into the generator's states.

    Parameters
    ----------
    whole : bool, default=True
        Bring global states of the subject beside those of places.
    """

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        self.first, self.second = (nn.Conv2d(n, WIDTH, 3, padding=1) for n in (3, WIDTH))
        self.heads = nn.ModuleList(nn.Linear(n * WIDTH, DIM) for n in (1, 2, 1))
        self.into = nn.ModuleList(nn.Linear(DIM, DIM) for _ in self.heads)

    def forward(self, picture: Float[Tensor, "canvas 3 high wide"]) -> Encoded:
        """Return the states of images."""
        maps = relu(self.second(relu(self.first(picture)))).flatten(2).transpose(1, 2)
        mean = maps.mean(1)
        near = torch.cat((maps, mean[:, None].expand_as(maps)), 2)
        made = (head(x) for head, x in zip(self.heads, (mean, near, mean), strict=True))
        return Encoded(*(layer_norm(x, x.shape[-1:]) for x in made))

    def sources(
        self, states: Encoded, with_ground: Tensor | None = None
    ) -> dict[str, Float[Tensor, "canvas _ dim"]]:
        """Return what to inject at each site, with the ground of the canvases of a mask."""
        whole, places, ground = self.into
        first = whole(states.whole) if self.whole else torch.zeros_like(states.whole)
        if with_ground is not None:
            first = first + with_ground[:, None] * ground(states.ground)
        return {FIRST: first[:, None], LAST: places(states.places)}


def injected(
    at: Studio,
    words: Int[Tensor, "canvas 3"],
    sources: dict[str, Tensor],
    edits: tuple[tuple[str, Inject], ...] = LEVELS["both levels"],
) -> Float[Tensor, "canvas 3 high wide"]:
    """Return images of words with states of another run, or of an encoder, injected at sites."""
    with ExitStack() as stack:
        for site, edit in edits:
            others = {"source": {site: sources[site]}}
            stack.enter_context(sonde.editing(at.painter, edit, site, others=others))
        return at.painter(words)


def subject_encoder(
    at: Studio,
    seed: int,
    steps: int = STEPS,
    *,
    ground_states: bool = True,
    separates: bool = True,
    whole: bool = True,
) -> SubjectEncoder:
    """Return an encoder that was trained to have its input painted again.

    Words name the digit, in 6 of 10 images the ground, never the ink. With ``ground_states`` the
    ground that no word names comes from states of its own. With ``separates`` the states of the
    subject are drawn to those of the same subject on another ground, and made independent of the
    ground's states. Without ``whole`` it learns with the subject's states of places alone.
    """
    net = drawn(lambda: SubjectEncoder(whole), seed)
    images, digit = digit_images(seed)
    draw = torch.Generator().manual_seed(seed)
    near, independent = Align("cosine"), Separate("cross_covariance")
    at = replace(at, painter=copy.deepcopy(at.painter).requires_grad_(False))

    def loss(rows: Tensor) -> Tensor:
        words, free = random_words(digit[rows], draw), torch.full_like(rows, SILENT)
        words[:, 1] = SILENT
        ink = colours_of(free, draw)
        canvas, other = (
            paint(as_amounts(images[rows]), digit[rows], ink, colours_of(said, draw))
            for said in (words[:, 2], free)
        )
        states = net(canvas.picture)
        unsaid = (words[:, 2] == SILENT).float() if ground_states else None
        found = mse_loss(injected(at, words, net.sources(states, unsaid)), canvas.picture)
        if not separates:
            return found
        twin = net(other.picture)
        for one, two in ((states, twin), (twin, states)):
            if whole:
                found = found + APART * near(one.whole, two.whole) / 2
            found = found + APART * near(one.places.flatten(0, 1), two.places.flatten(0, 1)) / 2
        for subject in (*[states.whole] * whole, states.places.mean(1)):
            found = found + APART * independent(subject, states.ground)
        return found

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return net


def as_amounts(image: Float[Tensor, "canvas 1 8 8"]) -> Float[Tensor, "canvas 1 8 8"]:
    """Return images as amounts of ink, at most 1."""
    return image / image.amax((1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class Asked:
    """Subjects on their grounds, words for other grounds, and the images that are asked for.

    Parameters
    ----------
    seen, wanted : Canvases
        The subjects as they are shown, and on the grounds that the words name.
    named, words : Int[Tensor, "canvas 3"]
        Words of ``seen``, and words of ``wanted`` without the ink.
    amount : Float[Tensor, "canvas high wide"]
        Ink at each position.
    """

    seen: Canvases
    wanted: Canvases
    named: Tensor
    words: Tensor
    amount: Tensor


def asked(seed: int, n: int = 400) -> Asked:
    """Return subjects that no encoder was trained on."""
    images, digit = (x[FIT : FIT + n] for x in digit_images(seed))
    draw = torch.Generator().manual_seed(1000 + seed)
    named, words = (random_words(digit, draw, 0.0) for _ in range(2))
    words[:, 1] = SILENT
    amount = as_amounts(images)
    ink = colours_of(named[:, 1], draw)
    seen, wanted = (
        paint(amount, digit, ink, colours_of(said[:, 2], draw)) for said in (named, words)
    )
    white, black = torch.ones_like(ink), torch.zeros_like(ink)
    return Asked(seen, wanted, named, words, paint(amount, digit, white, black).picture[:, 0])


def kept(at: Studio, picture: Float[Tensor, "canvas 3 high wide"], of: Asked) -> dict[str, float]:
    """Return how far images keep the subject, follow the words and carry the old ground over.

    ``subject`` is the explained variance of the pixels, weighted by the ink of the subject;
    ``carried`` the slope of the painted ground on the ground of the subject's image, beside that on
    the named ground: 1 if all of it comes.
    """
    weight, wanted = of.amount[:, None], of.wanted.picture
    error = (weight * (picture - wanted).square()).sum()
    ground = colours_in(picture, of.amount)[1]
    both = torch.stack((of.seen.ground, of.wanted.ground, torch.ones_like(ground)), 2)
    slopes = torch.linalg.lstsq(both.transpose(0, 1), ground.T[..., None], driver="gelsd").solution
    return {
        "subject": float(1 - error / (weight * (wanted - wanted.mean(0)).square()).sum()),
        "digit": float((digit_in(picture, at.on_canvas) == of.seen.digit).double().mean()),
        "ground": explained(ground, of.wanted.ground),
        "carried": float(slopes[:, 0].mean()),
    }


@torch.no_grad()
def subject_arms(at: Studio, seed: int, n: int, steps: int) -> dict[str, dict[str, float]]:
    """Return ``kept`` for words alone, states of the generator's own run, and four encoders."""
    of = asked(seed, n)
    with Tap(at.painter, [FIRST, LAST]) as tap:
        tap.run(of.named)
    own, mean = dict(tap.rows), ((LAST, Inject()),)
    found = {"words": at.painter(of.words), "own run, mean": injected(at, of.words, own, mean)}
    found["own run, both levels"] = injected(at, of.words, own)
    arms = {"encoder": (False, False), "own ground": (True, False), "separated": (True, True)}
    for name, (ground, separates) in arms.items():
        with part(name):
            net = subject_encoder(at, seed, steps, ground_states=ground, separates=separates)
        sources = net.sources(net(of.seen.picture))
        for level, edits in LEVELS.items():
            found[f"{name}, {level}"] = injected(at, of.words, sources, edits)
    with part("places alone"):
        net = subject_encoder(at, seed, steps, whole=False)
    found["places alone"] = injected(at, of.words, net.sources(net(of.seen.picture)))
    return {name: kept(at, picture, of) for name, picture in found.items()}
