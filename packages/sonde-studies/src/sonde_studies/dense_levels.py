"""Levels of a pyramid that meet all levels by learned weights, and attention that refines them.

Simulated maps in three sizes. One level shows what an object is, the others show something else
at its place; in a second task a mark at another place changes the object's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from sonde.layers import LevelFusion
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIZES, MIDDLE = (8, 4, 2), 4
CODES, WIDTH, OBJECTS, NOISE = 9, 12, 2, 0.1
"""Numbers of an object's code, channels of a map, objects of a scene, noise of a channel."""
MANY, FEW = 12, 4
"""Names in scenes without a mark, and with one."""
FIT, HELD, STEPS, MARK_STEPS, TINY, RATE, BATCH = 4_000, 1_000, 600, 700, 3, 1e-2, 32
DIM, HIDDEN, NARROW = 16, 64, 5
Kind = Literal["mean", "neighbours", "joined", "dense", "refined"]


@final
class DenseLevelsStudy(Study):
    """Heads on three levels that were fused in different ways, with as many parameters each."""

    name = "dense-levels"
    title = "do levels that meet all levels by learned weights name more objects?"
    paper = "wang2021pidray"
    fidelity = "simulated maps in place of a backbone's; names at given places, no boxes or masks"
    data = "simulated: two objects in a scene of three levels, each shown by one level"
    seconds = 35.0
    claims = (
        Claim("dense", "Levels that meet all levels by learned weights name more objects than "
              "levels that meet the mean of all, with as many parameters.",
              "accuracy over objects and levels, learned weights less the mean",
              arms=("dense", "mean")),
        Claim("neighbours", "They name more than levels that meet the mean of their neighbours.",
              "accuracy over objects and levels, learned weights less neighbours",
              arms=("dense", "neighbours")),
        Claim("joined", "They name more than levels that meet a hidden layer of all levels' "
              "channels, with as many parameters.",
              "accuracy over objects and levels, learned weights less hidden layer",
              arms=("dense", "joined")),
        Claim("refine", "Where a mark elsewhere changes the names, attention to the places of all "
              "fused levels names more than learned weights alone, with as many parameters.",
              "accuracy over objects and levels, refined less not",
              arms=("refined, mark", "dense, mark")),
    )  # fmt: skip
    null = Claim("lots", "Names by lot are not told of other scenes.",
                 f"accuracy over levels, less {1 / FEW:g}")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each fusion on scenes without a mark, two on scenes with one."""
        found = dict[str, float]()
        scenes = level_scenes(FIT + HELD, MANY, seed)
        for kind in KINDS:
            tick(kind)
            found[kind] = named(kind, scenes, seed, TINY if tiny else STEPS)
        scenes = level_scenes(FIT + HELD, FEW, seed)
        marked = replace(scenes, name=scenes.changed)
        for arm, kind in MARKED.items():
            tick(arm)
            found[arm] = named(kind, marked, seed, TINY if tiny else MARK_STEPS)
        tick("names by lot")
        return {
            "dense": found["dense"] - found["mean"],
            "neighbours": found["dense"] - found["neighbours"],
            "joined": found["dense"] - found["joined"],
            "refine": found["refined, mark"] - found["dense, mark"],
            "lots": by_lot(scenes.maps[0], seed, TINY if tiny else STEPS // 4),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


KINDS: tuple[Kind, ...] = ("mean", "neighbours", "joined", "dense")
MARKED: dict[str, Kind] = {"dense, mark": "dense", "refined, mark": "refined"}


@dataclass(frozen=True)
class LevelScenes:
    """Scenes in three sizes, where their objects are, and the objects' names.

    Parameters
    ----------
    maps : tuple of Float[Tensor, "scene channel high wide"]
        Fine to coarse.
    place : Int[Tensor, "scene object"]
        Places in the middle level, row by row.
    name, changed : Int[Tensor, "scene object"]
        Names, and names where half of the scenes have a mark that moves each name by one.
    names : int
        Number of different names.
    """

    maps: tuple[Float[Tensor, "scene channel _ _"], ...]
    place: Int[Tensor, "scene object"]
    name: Int[Tensor, "scene object"]
    changed: Int[Tensor, "scene object"]
    names: int


def level_scenes(n: int, names: int, seed: int) -> LevelScenes:
    """Return simulated scenes.

    In a world of a seed each name has a code. At an object's place each of the three levels shows
    the code of a name; the level that shows the object's own has an entry of 1 in the channel after
    the codes. In a fourth of the scene without an object, a place of a random level says in the
    last two channels that it is a mark, and which of two. Channels are rotated at random.

    Parameters
    ----------
    n, names : int
        Scenes, and names of objects.
    seed : int
    """
    draw = torch.Generator().manual_seed(seed)
    codes = normalize(torch.randn(names, CODES, generator=draw))
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw)).Q
    maps = [NOISE * torch.randn(n, s, s, WIDTH, generator=draw) for s in SIZES]
    cell = torch.rand(n, 4, generator=draw).argsort(1)
    within = torch.randint(4, (n, OBJECTS + 1), generator=draw)
    shows = torch.randint(3, (n, OBJECTS + 1), generator=draw)
    kinds = torch.randint(names, (n, OBJECTS, 3), generator=draw)
    mark = torch.randint(2, (n,), generator=draw)
    high = 2 * (cell[:, : OBJECTS + 1] // 2) + within // 2
    wide = 2 * (cell[:, : OBJECTS + 1] % 2) + within % 2
    every = torch.arange(n)
    for level, size in enumerate(SIZES):
        step = torch.randint(2, (2, n, OBJECTS + 1), generator=draw)  # where in a middle place
        at = [(p * 2 + s if size > MIDDLE else p * size // MIDDLE) for p, s in
              zip((high, wide), step, strict=True)]  # fmt: skip
        for i in range(OBJECTS):
            shown = torch.cat([codes[kinds[:, i, level]], torch.zeros(n, WIDTH - CODES)], 1)
            shown[:, CODES] = (shows[:, i] == level).float()
            maps[level][every, at[0][:, i], at[1][:, i]] += shown
        sign = torch.zeros(n, WIDTH)
        sign[:, CODES + 1], sign[:, CODES + 2] = 1.0, 2.0 * mark - 1
        here = (shows[:, -1] == level).float()[:, None]
        maps[level][every, at[0][:, -1], at[1][:, -1]] += here * sign
    name = kinds.gather(2, shows[:, :OBJECTS, None])[..., 0]
    turned = tuple((x @ turn).movedim(3, 1).contiguous() for x in maps)
    place = (MIDDLE * high + wide)[:, :OBJECTS]
    return LevelScenes(turned, place, name, (name + mark[:, None]) % names, names)


class _Joined(nn.Module):
    """Each level plus what a hidden layer makes of all levels' channels at a place."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(len(SIZES) * DIM, NARROW, 1), nn.ReLU(), nn.Conv2d(NARROW, DIM, 1)
            )
            for _ in SIZES
        )

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            x + part(torch.cat([_sized(y, x.shape[2]) for y in levels], 1))
            for x, part in zip(levels, self.parts, strict=True)
        )


def _fusion(kind: Kind) -> nn.Module:
    if kind == "joined":
        return _Joined()
    if kind == "neighbours":
        return LevelFusion(DIM, len(SIZES), "both")
    fusion = LevelFusion(DIM, len(SIZES), "dense", refine=kind == "refined")
    if kind == "mean":
        for weights in (fusion.channel, fusion.place):
            nn.init.zeros_(weights.requires_grad_(False))
    return fusion


class FusedNet(nn.Module):
    """A map of each level, a fusion, and one head for all levels.

    Parameters
    ----------
    kind : {"mean", "neighbours", "joined", "dense", "refined"}
        What a level meets. The head is as wide as lets all nets have as many parameters.
    names : int
    """

    def __init__(self, kind: Kind, names: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Conv2d(WIDTH, DIM, 1) for _ in SIZES)
        self.fusion = _fusion(kind)
        more = _size(LevelFusion(DIM, len(SIZES), "dense", refine=True)) - _size(self.fusion)
        hidden = HIDDEN + round(more / (DIM + 1 + names))
        self.head = nn.Sequential(nn.Linear(DIM, hidden), nn.ReLU(), nn.Linear(hidden, names))

    def forward(
        self, maps: tuple[Tensor, ...], place: Int[Tensor, "scene object"]
    ) -> Float[Tensor, "scene object level name"]:
        """Return the logits of the objects at places of the middle level, by each level."""
        fused = self.fusion(*(f(x) for f, x in zip(self.enter, maps, strict=True)))
        seen = [_sized(x, MIDDLE).flatten(2).transpose(1, 2) for x in fused]
        at = place[..., None].expand(-1, -1, DIM)
        return torch.stack([self.head(x.gather(1, at)) for x in seen], 2)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _sized(x: Tensor, size: int) -> Tensor:
    """Return maps in another size, by maxima or by the nearest entry."""
    if x.shape[2] > size:
        return nn.functional.adaptive_max_pool2d(x, size)
    return interpolate(x, size=(size, size), mode="nearest")


def learned(kind: Kind, scenes: LevelScenes, fit: int, seed: int, steps: int) -> FusedNet:
    """Return a net that was trained on the first scenes."""
    net = drawn(lambda: FusedNet(kind, scenes.names), seed)

    def loss(rows: Tensor) -> Tensor:
        said = net(tuple(x[rows] for x in scenes.maps), scenes.place[rows])
        name = scenes.name[rows][..., None].expand(said.shape[:3])
        return cross_entropy(said.flatten(0, 2), name.flatten())

    minimise(
        loss, [p for p in net.parameters() if p.requires_grad], fit,
        steps=steps, seed=seed, rate=RATE, batch=BATCH, falls=True,
    )  # fmt: skip
    return net


@torch.no_grad()
def right_on(net: Callable[..., Tensor], scenes: LevelScenes, first: int) -> float:
    """Return the accuracy over objects and levels in the scenes from a number on."""
    said = net(tuple(x[first:] for x in scenes.maps), scenes.place[first:]).argmax(3)
    return float((said == scenes.name[first:][..., None]).double().mean())


def named(kind: Kind, scenes: LevelScenes, seed: int, steps: int) -> float:
    """Train a net on all scenes but the last 1,000, and return its accuracy on those."""
    return right_on(learned(kind, scenes, len(scenes.name) - HELD, seed, steps), scenes, -HELD)


def by_lot(fine: Float[Tensor, "scene channel _ _"], seed: int, steps: int) -> float:
    """Return the accuracy of a refined net on names by lot of other scenes, less that of chance.

    Parameters
    ----------
    fine : Float[Tensor, "scene channel high wide"]
        Finest maps; the others are their maxima. The last 1,000 scenes judge.
    seed, steps : int
    """
    maps = (fine, _sized(fine, SIZES[1]), _sized(fine, SIZES[2]))
    name = labels_by_lot(fine, FEW, seed)[:, None].expand(-1, OBJECTS)
    place = torch.arange(OBJECTS).expand(len(fine), -1)
    scenes = LevelScenes(maps, place, name, name, FEW)
    return named("refined", scenes, seed, steps) - 1 / FEW
