"""Contrast of whole images against contrast of positions that two crops share.

Scenes of three digits; probes read places, and whole scenes, from the same convolutional net.
"""

from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.train import Contrast, similarity_smoothing
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.heads import linear_head
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, CELL, CROP, STRIDE, DIM = 28, 8, 16, 4, 32
FIT, SCENES, PROBED, STEPS, TINY, FEW, BATCH = 1_200, 1_500, 500, 350, 3, 100, 24
HEAT, DECAY, RADIUS = 0.2, 0.99, 0.7
ARMS = ("untrained", "pictures", "places", "smoothed", "both")


@final
class DenseContrastStudy(Study):
    """A net with contrast of images, of positions, of smoothed positions, and of both."""

    name = "dense-contrast"
    title = "does contrast of places serve places better than contrast of pictures?"
    paper = "xie2021pixpro"
    fidelity = "crops without a change of size; one map after the smoothing, no projection heads"
    data = "scenes of 28 x 28 with three digits: 1,500 to train on, 375 of other digits to judge"
    claims = (
        Claim("places", "Places are named better after contrast of places than of pictures.",
              "accuracy of a probe of places, places less pictures"),
        Claim("whole", "What is in a scene is told no worse by it, to two points.",
              "accuracy of a probe of scenes, places less pictures, and 0.02"),
        Claim("smoothed", "Without negatives, attraction of smoothed places beats pictures too.",
              "accuracy of a probe of places, smoothed less pictures"),
        Claim("both", "Places and pictures together serve places better than pictures alone.",
              "accuracy of a probe of places, both less pictures"),
    )  # fmt: skip
    null = Claim("start", "Another start of the net changes nothing.",
                 "accuracy of a probe of places, difference of two starts, places")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on crops of the same scenes."""
        x, label = shuffled_digits(seed)
        n = FEW if tiny else SCENES
        fit = _scenes(x[:FIT], label[:FIT], seed, n)
        judge = _scenes(x[FIT:], label[FIT:], seed + 1, n // 4)
        found = dict[str, dict[str, float]]()
        for arm in (*ARMS, "another start"):
            tick(arm)
            start = seed + 1_000 * (arm == "another start")
            net = drawn(_Net, start)
            if arm != "untrained":
                how = "places" if arm == "another start" else arm
                _learn(net, fit[0], how, seed, TINY if tiny else STEPS)
            found[arm] = _probed(net, fit, judge)
        place, scene = ({arm: row[k] for arm, row in found.items()} for k in ("places", "scenes"))
        return {
            "places": place["places"] - place["pictures"],
            "whole": scene["places"] - scene["pictures"] + 0.02,
            "smoothed": place["smoothed"] - place["pictures"],
            "both": place["both"] - place["pictures"],
            "start": place["another start"] - place["places"],
            **{f"{arm} | {k}": v for arm, row in found.items() for k, v in row.items()},
        }


def _scenes(x: Tensor, label: Tensor, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Return scenes (scene, 1, line, column), and each position's digit, 10 for none.

    Three of nine cells hold a digit; all cells of a scene are moved together by up to four pixels.
    """
    draw = torch.Generator().manual_seed(seed)
    scenes, kinds = torch.zeros(n, SIDE, SIDE), torch.full((n, SIDE, SIDE), 10)
    for i in range(n):
        shift = torch.randint(SIDE - 3 * CELL + 1, (2,), generator=draw).tolist()
        for cell in torch.randperm(9, generator=draw)[:3].tolist():
            row = int(torch.randint(len(x), (), generator=draw))
            a, b = shift[0] + CELL * (cell // 3), shift[1] + CELL * (cell % 3)
            scenes[i, a : a + CELL, b : b + CELL] = x[row].reshape(8, 8)
            kinds[i, a : a + CELL, b : b + CELL] = label[row]
    centres = slice(STRIDE // 2, None, STRIDE)
    noise = 0.1 * torch.randn(n, 1, SIDE, SIDE, generator=draw)
    return scenes[:, None] + noise, kinds[:, centres, centres].flatten(1)


class _Net(nn.Module):
    """Four convolutions with a state for every fourth pixel; ``last`` maps smoothed states."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, DIM, 3, padding=1),
        )  # fmt: skip
        self.last = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Return states (picture, place, dim)."""
        return self.body(x).flatten(2).transpose(1, 2)


def _crop(scenes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a crop of each scene with other brightness, and its positions in diagonals."""
    n, side = len(scenes), CROP // STRIDE
    corner = torch.randint(SIDE - CROP + 1, (n, 2))
    at = corner[:, :, None] + torch.arange(CROP)
    rows = torch.arange(n)[:, None, None]
    cut = scenes[:, 0][rows, at[:, 0, :, None], at[:, 1, None, :]][:, None]
    light = 0.7 + 0.6 * torch.rand(n, 1, 1, 1)
    steps = STRIDE * (torch.arange(side) + 0.5)
    place = corner[:, None] + torch.cartesian_prod(steps, steps)
    return light * cut + 0.1 * torch.randn(cut.shape), place / (STRIDE * 2**0.5)


def _learn(net: _Net, scenes: Tensor, arm: str, seed: int, steps: int) -> None:
    slow, attraction = deepcopy(net), Contrast(1.0, "none", radius=RADIUS)
    contrast = Contrast(HEAT, radius=RADIUS)

    def loss(rows: Tensor) -> Tensor:
        (one, here), (two, there) = (_crop(scenes[rows]) for _ in range(2))
        states = net(one), net(two)
        n, places = states[0].shape[:2]
        view = torch.arange(2).repeat_interleave(n)
        if arm == "smoothed":
            return _attracted(net, slow, (one, two), states, (here, there), attraction)
        value = one.new_zeros(())
        if arm in ("pictures", "both"):
            value = contrast(torch.cat([s.mean(1) for s in states]), view=view)
        if arm in ("places", "both"):
            label = torch.arange(n).repeat_interleave(places).repeat(2)
            at = torch.cat([here, there]).flatten(0, 1)
            value = value + contrast(torch.cat(states).flatten(0, 1), label=label, place=at)
        return value

    minimise(loss, net.parameters(), len(scenes), steps=steps, seed=seed, batch=BATCH)


def _attracted(
    net: _Net, slow: _Net, crops: Any, states: Any, at: Any, attraction: Contrast
) -> Tensor:
    """Return the attraction of smoothed positions to those of a moving-average copy."""
    with torch.no_grad():
        for own, other in zip(slow.parameters(), net.parameters(), strict=True):
            own.lerp_(other, 1 - DECAY)
        targets = [slow(crop) for crop in crops]
    n, places = states[0].shape[:2]
    label = torch.arange(n).repeat_interleave(places).repeat(2)
    values = list[Tensor]()
    for i, j in ((0, 1), (1, 0)):
        smooth = net.last(similarity_smoothing(states[i]))
        rows = torch.cat([smooth, targets[j]]).flatten(0, 1)
        place = torch.cat([at[i], at[j]]).flatten(0, 1)
        values.append(attraction(rows, label=label, place=place))
    return torch.stack(values).mean()


@torch.no_grad()
def _probed(
    net: _Net, fit: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Return accuracies of linear probes: each position's digit, and the digits of a scene."""
    net.eval()
    some = slice(PROBED)
    of_fit, of_judge = net(fit[0][some]), net(judge[0])
    kinds = fit[1][some], judge[1]
    at = [k < 10 for k in kinds]
    head = linear_head().fit(of_fit[at[0]].numpy(), kinds[0][at[0]].numpy())
    places = head.score(of_judge[at[1]].numpy(), kinds[1][at[1]].numpy())
    right = list[float]()
    for digit in range(10):
        there = [(k == digit).any(1).numpy() for k in kinds]
        head = linear_head().fit(of_fit.mean(1).numpy(), there[0])
        said = head.predict_proba(of_judge.mean(1).numpy())[:, 1] > there[0].mean()
        right += [float((said == there[1])[there[1] == k].mean()) for k in (False, True)]
    return {"places": float(places), "scenes": sum(right) / len(right)}
