"""Contrast of whole images against contrast of positions that two crops share.

Scenes of three digits; probes read places, and whole scenes, from the same convolutional net.
"""

from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.train import Contrast, similarity_smoothing
from sonde_studies._digit_scenes import CROP, STRIDE, CropPair, digit_scenes
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, SCENES, PROBED, STEPS, TINY, FEW, BATCH = 1_200, 1_500, 500, 350, 3, 100, 24
DIM, HEAT, DECAY, RADIUS, GRID = 32, 0.2, 0.99, 0.7, (CROP // STRIDE, CROP // STRIDE)
ARMS = ("untrained", "pictures", "places", "numbers", "smoothed", "no map", "both")


@final
class DenseContrastStudy(Study):
    """A net with contrast of images, of positions by two rules, of smoothed ones, and of both."""

    name = "dense-contrast"
    title = "does contrast of places serve places better than contrast of pictures?"
    paper = "xie2021pixpro"
    fidelity = "crops of other size and light, none mirrored; no projection heads"
    data = "scenes of 28 x 28 with three digits: 1,500 to train on, 375 of other digits to judge"
    claims = (
        Claim("places", "Places are named better after contrast of places than of pictures.",
              "accuracy of a probe of places, places less pictures",
              arms=("places", "pictures")),
        Claim("whole", "What is in a scene is told no worse by it, to two points.",
              "accuracy of a probe of scenes, places less pictures, and 0.02",
              arms=("places", "pictures")),
        Claim("smoothed", "Without negatives, attraction of smoothed places beats contrast of "
              "pictures.",
              "accuracy of a probe of places, smoothed less pictures",
              arms=("smoothed", "pictures")),
        Claim("both", "Places and pictures together serve places better than pictures alone.",
              "accuracy of a probe of places, both less pictures",
              arms=("both", "pictures")),
        Claim("boxes", "Places by the boxes of both crops beat equal numbers of tokens.",
              "accuracy of a probe of places, places less numbers",
              arms=("places", "numbers")),
        Claim("value", "A learned map of the values that are smoothed beats smoothing without.",
              "accuracy of a probe of places, smoothed less no map",
              arms=("smoothed", "no map")),
    )  # fmt: skip
    null = Claim("by lot", "A probe of places tells no labels by lot of other digits.",
                 "accuracy after contrast of places, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on crops of the same scenes."""
        x, label = shuffled_digits(seed)
        n = FEW if tiny else SCENES
        fit = digit_scenes(x[:FIT], label[:FIT], seed, n)
        judge = digit_scenes(x[FIT:], label[FIT:], seed + 1, n // 4)
        found = dict[str, dict[str, float]]()
        nets = dict[str, _Net]()
        for arm in ARMS:
            tick(arm)
            nets[arm] = net = drawn(_Net, seed)
            if arm != "untrained":
                _learn(net, fit[0], arm, seed, TINY if tiny else STEPS)
            found[arm] = _probed(net, fit, judge)
        tick("labels by lot")
        place, scene = ({arm: row[k] for arm, row in found.items()} for k in ("places", "scenes"))
        return {
            "places": place["places"] - place["pictures"],
            "whole": scene["places"] - scene["pictures"] + 0.02,
            "smoothed": place["smoothed"] - place["pictures"],
            "both": place["both"] - place["pictures"],
            "boxes": place["places"] - place["numbers"],
            "value": place["smoothed"] - place["no map"],
            "by lot": by_lot(nets["places"], x, seed, n),
            **{f"{arm} | {k}": v for arm, row in found.items() for k, v in row.items()},
        }


@torch.no_grad()
def by_lot(net: nn.Module, x: Tensor, seed: int, n: int) -> float:
    """Return the accuracy of a probe of places on labels by lot of digits, less chance."""
    label, parts = labels_by_lot(x, 10, seed), (slice(FIT), slice(FIT, None))
    fit, judge = (
        digit_scenes(x[rows], label[rows], seed + i, m)
        for i, (rows, m) in enumerate(zip(parts, (min(n, PROBED), n // 4), strict=True))
    )
    (x_fit, y_fit), (x_new, y_new) = ((net.eval()(s)[k < 10], k[k < 10]) for s, k in (fit, judge))
    head = linear_head().fit(x_fit.numpy(), y_fit.numpy())
    return float(head.score(x_new.numpy(), y_new.numpy())) - 0.1


class _Net(nn.Module):
    """Four convolutions with a state for every fourth pixel; ``value`` maps smoothed states."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, DIM, 3, padding=1),
        )  # fmt: skip
        self.value = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Return states (picture, place, dim)."""
        return self.body(x).flatten(2).transpose(1, 2)


def _learn(net: _Net, scenes: Tensor, arm: str, seed: int, steps: int) -> None:
    slow, contrast = deepcopy(net), Contrast(HEAT, radius=RADIUS)

    def loss(rows: Tensor) -> Tensor:
        pair = CropPair.of(scenes[rows], GRID)
        states = [net(crops) for crops in pair.crops]
        if arm in ("smoothed", "no map"):
            targets = _followed(slow, net, pair.crops)
            return _attracted(states, targets, pair, net.value if arm == "smoothed" else None)
        value, every = scenes.new_zeros(()), torch.cat(states).flatten(0, 1)
        if arm == "numbers":
            return contrast(every, label=torch.arange(len(every) // 2).repeat(2))
        if arm in ("pictures", "both"):
            view = torch.arange(2).repeat_interleave(len(rows))
            value = contrast(torch.cat([s.mean(1) for s in states]), view=view)
        return value if arm == "pictures" else value + contrast(every, **pair.columns)

    minimise(loss, net.parameters(), len(scenes), steps=steps, seed=seed, batch=BATCH)


@torch.no_grad()
def _followed(slow: _Net, net: _Net, crops: Tensor) -> list[Tensor]:
    """Return states of crops by a moving average of the net, which takes a step towards it."""
    for own, other in zip(slow.parameters(), net.parameters(), strict=True):
        own.lerp_(other, 1 - DECAY)
    return [slow(part) for part in crops]


def _attracted(states: list[Tensor], targets: list[Tensor], pair: CropPair, value: Any) -> Tensor:
    """Return the attraction of smoothed positions to those of the other crop in a slow copy."""
    attraction, values = Contrast(1.0, "none", radius=RADIUS), list[Tensor]()
    for i, columns in enumerate((pair.columns, pair.swapped.columns)):
        rows = torch.cat([similarity_smoothing(states[i], value), targets[1 - i]]).flatten(0, 1)
        values.append(attraction(rows, **columns))
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
