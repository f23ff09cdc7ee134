"""A painter of dressed digits that reads a person's clothes from another picture of that person.

Paint a digit's shape in the clothes of a source picture: by a coarse prompt of a frozen encoder's
last layer, by that prompt with biases of its finer layers, or by all layers at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from sonde.layers import Readout
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise

FIT, PEOPLE, HELD, PATTERNS = 1_200, 300, 400, 4
STEPS, NAMING, TINY = 450, 300, 10
WIDTHS, DIM, QUERIES, HIDDEN = (16, 24, 32), 32, 4, 64
"""Channels of the encoder's layers; width, vectors and hidden units of the painter."""
ARMS: Mapping[str, tuple[int, ...]] = {
    "biases": (0, 1),
    "coarse": (),
    "finer scale": (0,),
    "joined": (),
    "direct": (),
}
"""The layers of finer features whose biases are added to the prompt."""


@final
class CoarsePromptStudy(Study):
    """Four colours and patterns of a person in one picture, to paint on another shape.

    Steps, widths and the number of vectors were chosen on seeds 100 and 101, equal for all arms.
    """

    name = "coarse-prompt"
    title = "do finer features serve better as biases of a coarse prompt than beside it?"
    paper = "lu2024cfld"
    fidelity = (
        "one step of painting in place of diffusion; a digit's shape in place of a pose; one "
        "attention of queries in place of a decoder of several layers"
    )
    data = (
        "digits as shapes, 1,200 to train on and 597 to judge; clothes of 300 people to train on "
        "and of 400 others to judge: three colours and one of four patterns"
    )
    seconds = 25.0
    claims = (
        Claim("biases", "Biases of finer layers paint other people better than the coarse prompt "
              "alone.", "logarithm of squared error, coarse over biases",
              arms=("biases", "coarse")),
        Claim("over joined", "They do so better than queries that attend to the tokens of all "
              "layers at once.", "logarithm of squared error, joined over biases",
              arms=("biases", "joined")),
        Claim("over direct", "They do so better than a painter that attends to these tokens "
              "without a prompt.", "logarithm of squared error, direct over biases",
              arms=("biases", "direct")),
        Claim("overfit", "From known people to others, the error rises less with prompt and biases "
              "than without a prompt.",
              "logarithm of squared error, others over known: direct less biases",
              arms=("biases", "direct")),
        Claim("scales", "Biases of two layers paint better than those of the finest alone.",
              "logarithm of squared error, finest over both", arms=("biases", "finer scale")),
    )  # fmt: skip
    null = Claim("stranger", "A prompt that was read from a stranger tells nothing of the shirt.",
                 "correlation of painted and true colours")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Pretrain the encoder, train each painter, and judge on other people and shapes."""
        world = Wardrobe.drawn(seed)
        with part("encoder"):
            tick("encoder")
            encoder = pretrained(world, TINY if tiny else NAMING, seed)
        known, others = (world.pairs(fit, seed + 1) for fit in (True, False))
        found, nets = dict[str, tuple[float, float]](), dict[str, Painter]()
        for arm in ARMS:
            tick(arm)
            nets[arm] = learned_painter(arm, world, encoder, TINY if tiny else STEPS, seed)
            found[arm] = (
                error(nets[arm], encoder, world, known),
                error(nets[arm], encoder, world, others),
            )
        held = {arm: math.log(e) for arm, (_, e) in found.items()}
        rise = {arm: math.log(e / fit) for arm, (fit, e) in found.items()}
        return {
            "biases": held["coarse"] - held["biases"],
            "over joined": held["joined"] - held["biases"],
            "over direct": held["direct"] - held["biases"],
            "overfit": rise["direct"] - rise["biases"],
            "scales": held["finer scale"] - held["biases"],
            "stranger": shirt_told(nets["biases"], encoder, world, others, shift=1),
            "own shirt": shirt_told(nets["biases"], encoder, world, others, shift=0),
            **{f"squared error | {arm}, known": e for arm, (e, _) in found.items()},
            **{f"squared error | {arm}, others": e for arm, (_, e) in found.items()},
        }


@dataclass(frozen=True)
class Pairs:
    """Numbers of people, of shapes of their source pictures and of shapes to paint."""

    person: Int[Tensor, "pair"]
    source: Int[Tensor, "pair"]
    target: Int[Tensor, "pair"]


@dataclass(frozen=True)
class Wardrobe:
    """Shapes of digits and the clothes of people.

    Parameters
    ----------
    shape : Tensor
        (shape, 8, 8), from 0 to 1.
    label : Tensor
        Digit of each shape.
    colour : Tensor
        (person, 3, 3): colours of shirt, trousers and ground.
    pattern : Tensor
        Pattern of each person's shirt: none, lines, columns or checks.
    """

    shape: Float[Tensor, "shape 8 8"]
    label: Int[Tensor, "shape"]
    colour: Float[Tensor, "person 3 3"]
    pattern: Int[Tensor, "person"]

    @classmethod
    def drawn(cls, seed: int) -> "Wardrobe":
        """Return shapes and clothes that a seed draws."""
        x, label = digit_images(seed)
        draw = torch.Generator().manual_seed(seed)
        n = PEOPLE + HELD
        colour = torch.rand(n, 3, 3, generator=draw)
        pattern = torch.randint(PATTERNS, (n,), generator=draw)
        return cls(x[:, 0] / x.max(), label, colour, pattern)

    def pairs(self, fit: bool, seed: int, n: int = 1_000) -> Pairs:
        """Return pairs of pictures of people and shapes, to train on or to judge."""
        draw = torch.Generator().manual_seed(seed)
        people = (0, PEOPLE) if fit else (PEOPLE, PEOPLE + HELD)
        shapes = (0, FIT) if fit else (FIT, len(self.shape))
        both = torch.randint(*shapes, (2, n), generator=draw)
        return Pairs(torch.randint(*people, (n,), generator=draw), both[0], both[1])

    def painted(
        self, person: Int[Tensor, "picture"], shape: Int[Tensor, "picture"]
    ) -> Float[Tensor, "picture 3 8 8"]:
        """Return pictures of people in a shape."""
        line, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        off = torch.stack([0 * line, line % 2, column % 2, (line + column) % 2])
        shade = 1 - 0.6 * off[self.pattern[person]].unsqueeze(1)
        shirt, trousers, ground = self.colour[person].unbind(1)
        cloth = torch.where(line < 4, shirt[..., None, None] * shade, trousers[..., None, None])
        ink = self.shape[shape].unsqueeze(1)
        return ink * cloth + (1 - ink) * ground[..., None, None]


class Encoder(nn.Module):
    """Three layers of convolutions that know where each pixel stands."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.layers = nn.ModuleList([
            nn.Conv2d(5, fine, 3, padding=1),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
        ])  # fmt: skip

    def forward(self, x: Float[Tensor, "picture 3 8 8"]) -> list[Tensor]:
        """Return the tokens (picture, token, channel) of each layer."""
        at = torch.linspace(-1, 1, 8)
        grid = torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(len(x), -1, -1, -1)
        state, found = torch.cat([x, grid], 1), list[Tensor]()
        for layer in self.layers:
            state = layer(state).relu()
            found.append(state.flatten(2).transpose(1, 2))
        return found


def pretrained(world: Wardrobe, steps: int, seed: int) -> Encoder:
    """Return a frozen encoder that was taught digits and colours, but no patterns."""
    net = drawn(Encoder, seed)
    head = drawn(lambda: nn.Linear(4 * WIDTHS[-1], 10 + 9), seed)
    rows = world.pairs(True, seed, 4_000)

    def loss(some: Tensor) -> Tensor:
        person, shape = rows.person[some], rows.source[some]
        told = head(net(world.painted(person, shape))[-1].flatten(1))
        colours = (told[:, 10:] - world.colour[person].flatten(1)).square().mean()
        return cross_entropy(told[:, :10], world.label[shape]) + 10 * colours

    minimise(loss, [*net.parameters(), *head.parameters()], FIT, steps=steps, seed=seed)
    return net.eval().requires_grad_(False)


class Painter(nn.Module):
    """Squares of a shape that attend to the vectors of a source picture."""

    def __init__(self, arm: str, hidden: int) -> None:
        super().__init__()
        self.arm = arm
        self.embed, self.place = nn.Linear(4, DIM), nn.Parameter(torch.randn(16, DIM) / 10)
        self.mixing = nn.TransformerEncoderLayer(DIM, 4, hidden, 0.0, batch_first=True)
        self.reading = nn.MultiheadAttention(DIM, 4, batch_first=True)
        self.out = nn.Sequential(nn.Linear(DIM, hidden), nn.ReLU(), nn.Linear(hidden, 12))
        ask = partial(Readout, dim=DIM, combine="queries", n_queries=QUERIES)
        if arm == "direct":
            self.maps = nn.ModuleList(nn.Linear(width, DIM) for width in WIDTHS)
        elif arm == "joined":
            self.readout = ask(WIDTHS)
        else:
            self.readout = ask(WIDTHS[-1:], biases=[WIDTHS[i] for i in ARMS[arm]])

    def vectors(self, sites: Sequence[Tensor]) -> Float[Tensor, "picture vector dim"]:
        """Return what the squares attend to."""
        if self.arm == "direct":
            each = zip(self.maps, sites, strict=True)
            return torch.cat([m(layer_norm(x, x.shape[-1:])) for m, x in each], 1)
        if self.arm == "joined":
            return self.readout(*sites)
        return self.readout(sites[-1], fine=[sites[i] for i in ARMS[self.arm]])

    def forward(
        self, sites: Sequence[Tensor], shape: Float[Tensor, "picture 8 8"]
    ) -> Float[Tensor, "picture 3 8 8"]:
        """Paint shapes in the clothes of source pictures, given as the encoder's tokens."""
        squares = shape.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        state = self.mixing(self.embed(squares) + self.place)
        found = self.vectors(sites)
        state = state + self.reading(state, found, found, need_weights=False)[0]
        pixels = self.out(state).reshape(-1, 4, 4, 3, 2, 2)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 8, 8)


def painter(arm: str, seed: int) -> Painter:
    """Return an untrained painter with about as many parameters as that of the biases."""

    def size(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    wanted = size(Painter("biases", HIDDEN))
    each_unit = size(Painter(arm, 2)) - size(Painter(arm, 1))
    hidden = HIDDEN + round((wanted - size(Painter(arm, HIDDEN))) / each_unit)
    return drawn(lambda: Painter(arm, hidden), seed)


def learned_painter(
    arm: str, world: Wardrobe, encoder: Encoder, steps: int, seed: int, n: int = 4_000
) -> Painter:
    """Return a painter that was trained on the known people."""
    net, rows = painter(arm, seed), world.pairs(True, seed, n)
    wanted, shape = world.painted(rows.person, rows.target), world.shape[rows.target]
    with torch.no_grad():
        sites = encoder(world.painted(rows.person, rows.source))

    def loss(some: Tensor) -> Tensor:
        return (net([site[some] for site in sites], shape[some]) - wanted[some]).square().mean()

    minimise(loss, net.parameters(), n, steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def error(net: Painter, encoder: Encoder, world: Wardrobe, rows: Pairs) -> float:
    """Return the mean squared error of the painted pictures."""
    picture = net(encoder(world.painted(rows.person, rows.source)), world.shape[rows.target])
    return float((picture - world.painted(rows.person, rows.target)).square().mean())


@torch.no_grad()
def shirt_told(net: Painter, encoder: Encoder, world: Wardrobe, rows: Pairs, shift: int) -> float:
    """Return the correlation of painted and true shirts, the mean of three channels.

    Parameters
    ----------
    net : Painter
    encoder : Encoder
    world : Wardrobe
    rows : Pairs
    shift : int
        The source is that of the person who stands ``shift`` people further on.
    """
    known = PEOPLE * int(rows.person.min() >= PEOPLE)
    among = HELD if known else PEOPLE
    read = (rows.person - known + shift) % among + known
    picture = net(encoder(world.painted(read, rows.source)), world.shape[rows.target])
    ink = world.shape[rows.target][:, :4].unsqueeze(1)
    shirt = (picture[:, :, :4] * ink).sum((2, 3)) / ink.sum((2, 3)).clamp(min=1e-6)
    pairs = torch.stack([shirt, world.colour[rows.person, 0]]).unbind(2)
    return sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / len(pairs)
