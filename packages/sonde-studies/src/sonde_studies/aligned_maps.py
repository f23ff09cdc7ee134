"""Maps of classes that are aligned with colours, features and attention.

A net learns the class of single digits. In a scene of three, the map of a class, its logit at each
token, should lie on the digit of the class.
"""

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, max_pool2d, relu

from sonde.explain import aligned_map
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, CELL, PATCH, DIM, KINDS, FIT = 24, 8, 4, 48, 10, 1_200
SCENES, TINY, STEPS, DIGITS = 400, 24, 200, 3
CLUTTER, DIM_GROUND = 0.08, 0.25
SOURCES: dict[str, tuple[str, ...]] = {
    "joined": ("colours", "features", "attention"),
    "colours": ("colours",),
    "features": ("features",),
    "attention": ("attention",),
}
"""What each aligned map is aligned with."""
ALONE = ("colours", "features", "attention")
SETTINGS: dict[str, Any] = {
    "joined": {"width": 0.1, "temperature": 0.3},
    "colours": {"width": 0.1},
    "features": {"temperature": 0.03},
    "attention": {},
}
"""The best of eighteen for each arm, on seeds 100 and 101."""


@final
class AlignedMapsStudy(Study):
    """Scenes of three digits, each in a colour of its own, on a dim coloured ground."""

    name = "aligned-maps"
    title = "do colours, features and attention together align maps of classes with their objects?"
    paper = "doei2025"
    fidelity = (
        "the alignment alone, without learned parameters, on logits of tokens; a small net of "
        "two convolutions and one attention, trained on single digits, for a transformer that is "
        "trained on the classes of pictures; width, temperature and steps were chosen on seeds "
        "100 and 101, for each arm from the same 18 settings"
    )
    data = "scenes of 24 x 24 with three coloured digits; digits of test scenes are not those of "
    data += "training"
    claims = (
        Claim("joined", "A map that is aligned with colours, features and attention lies on the "
              "digit of its class more than the map as it is.",
              "AUROC of tokens, joined less map", arms=("joined", "map")),
        Claim("over colours", "More than one aligned with colours alone.",
              "AUROC of tokens, joined less colours", arms=("joined", "colours")),
        Claim("over features", "More than one aligned with features alone.",
              "AUROC of tokens, joined less features", arms=("joined", "features")),
        Claim("over attention", "More than one aligned with attention alone.",
              "AUROC of tokens, joined less attention", arms=("joined", "attention")),
    )  # fmt: skip
    null = Claim("by lot", "Digits that are put at places by lot are not found.",
                 "AUROC of tokens, joined", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, and align its maps with each source."""
        x, label = shuffled_digits(seed)
        n, steps = (TINY, 4) if tiny else (SCENES, STEPS)
        tick("map")
        net = trained_net(x[:FIT], label[:FIT], seed, steps)
        scenes = coloured_scenes(x[FIT:], label[FIT:], seed, n)
        plain, given = class_maps(net, scenes)
        maps = {"map": plain}
        for name, sources in SOURCES.items():
            note_again(name, "map")
            chosen: Any = {source: given[source] for source in sources}
            maps[name] = aligned_map(plain, **chosen, **SETTINGS[name])
        found = {name: area_on_digits(x, scenes.on) for name, x in maps.items()}
        return {
            "joined": found["joined"] - found["map"],
            **{f"over {name}": found["joined"] - found[name] for name in ALONE},
            "by lot": area_on_digits(maps["joined"], by_lot(scenes.on, 1_000 + seed)),
            **{f"AUROC | {name}": v for name, v in found.items()},
        }


class Scenes(NamedTuple):
    """Pictures, and the tokens of each class: none for a class that a scene lacks."""

    picture: Float[Tensor, "scene 3 line column"]
    on: Bool[Tensor, "scene token class"]


def coloured(image: Float[Tensor, "_ 1 8 8"], draw: torch.Generator) -> Tensor:
    """Return digits in inks of their own on dim grounds (image 3 8 8)."""
    ink, ground = (torch.rand(len(image), 3, 1, 1, generator=draw) for _ in range(2))
    return image * ink / ink.amax(1, True) + (1 - image) * DIM_GROUND * ground


def coloured_scenes(x: Tensor, label: Tensor, seed: int, n: int) -> Scenes:
    """Return scenes of three digits in inks of their own, with clutter.

    Parameters
    ----------
    x : Float[Tensor, "digit pixel"]
        Images of 8 x 8 pixels to choose from, some of each class.
    label : Int[Tensor, "digit"]
    seed, n : int
    """
    draw = torch.Generator().manual_seed(seed)
    pictures = DIM_GROUND * torch.rand(n, 3, 1, 1, generator=draw) * torch.ones(1, 1, SIDE, SIDE)
    ink = torch.zeros(n, KINDS, SIDE, SIDE)
    across = SIDE // CELL
    for i in range(n):
        kinds = torch.randperm(KINDS, generator=draw)[:DIGITS]
        places = torch.randperm(across**2, generator=draw)[:DIGITS].tolist()
        for kind, place in zip(kinds.tolist(), places, strict=True):
            of_kind = torch.nonzero(label == kind).flatten()
            image = x[of_kind[torch.randint(len(of_kind), (1,), generator=draw)]].reshape(8, 8)
            colour = torch.rand(3, 1, 1, generator=draw)
            a, b = CELL * (place // across), CELL * (place % across)
            here = pictures[i, :, a : a + CELL, b : b + CELL]
            drawn_over = image * colour / colour.max() + (1 - image) * here
            pictures[i, :, a : a + CELL, b : b + CELL] = drawn_over
            ink[i, kind, a : a + CELL, b : b + CELL] = image
    grey = (torch.rand(n, 1, SIDE, SIDE, generator=draw) < CLUTTER) & (ink.sum(1, True) == 0)
    on = avg_pool2d(ink, PATCH).flatten(2).transpose(1, 2) > 0.15
    return Scenes(torch.where(grey, 0.7, pictures), on)


class TokenNet(nn.Module):
    """Two convolutions, an attention between tokens, and a logit of each class at each token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, DIM, 3, padding=1) for n in (3, DIM))
        self.norm = nn.LayerNorm(DIM)
        self.attention = nn.MultiheadAttention(DIM, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, KINDS))

    def tokens(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens' states, and the attention between them, mean over heads."""
        x = max_pool2d(relu(self.first(picture)), 2)
        x = max_pool2d(relu(self.second(x)), 2).flatten(2).transpose(1, 2)
        normed = self.norm(x)
        brought, attention = self.attention(normed, normed, normed)
        return x + brought, attention

    def forward(self, picture: Tensor) -> Float[Tensor, "image class"]:
        """Return the logits of the classes, means over tokens."""
        return self.head(self.tokens(picture)[0]).mean(1)


def trained_net(x: Tensor, label: Tensor, seed: int, steps: int) -> TokenNet:
    """Return a net that learned the classes of single digits in free colours."""
    net, draw = drawn(TokenNet, seed), torch.Generator().manual_seed(seed)
    images = x.reshape(-1, 1, 8, 8)
    minimise(
        lambda rows: cross_entropy(net(coloured(images[rows], draw)), label[rows]),
        net.parameters(), len(x), steps=steps, seed=seed,
    )  # fmt: skip
    return net


@torch.no_grad()
def class_maps(net: TokenNet, scenes: Scenes) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the maps of classes (scene token class), and what they may be aligned with."""
    states, attention = net.tokens(scenes.picture)
    colours = avg_pool2d(scenes.picture, PATCH).flatten(2).transpose(1, 2)
    return net.head(states), {"colours": colours, "features": states, "attention": attention}


def area_on_digits(maps: Float[Tensor, "scene token class"], on: Tensor) -> float:
    """Return the mean AUROC of the tokens of a digit, over the digits of all scenes."""
    areas = [_area(maps[i, :, k], on[i, :, k]) for i, k in on.any(1).nonzero().tolist()]
    return sum(areas) / len(areas)


def _area(score: Float[Tensor, "token"], on: Bool[Tensor, "token"]) -> float:
    """Return how often a token of the digit scores above another token; ties count half."""
    above = score[on][:, None] - score[~on][None]
    return float(((above > 0).double() + 0.5 * (above == 0).double()).mean())


def by_lot(on: Bool[Tensor, "scene token class"], seed: int) -> Tensor:
    """Return the tokens of each digit after all tokens were put at places by lot."""
    order = torch.rand(on.shape[:2], generator=torch.Generator().manual_seed(seed)).argsort(1)
    return on.gather(1, order[..., None].expand_as(on))
