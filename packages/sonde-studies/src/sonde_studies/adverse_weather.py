"""Restoration of patches of photographs under haze, rain and snow.

Small nets with attention and convolutions among similar values, or among near pixels.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from sonde.layers import Attention, RangeConvolution, SecondOrder
from sonde_studies._unet import OverTokens
from sonde_studies._weather import SIDE, Patches, mixed_weather, patches_of, photographs
from sonde_studies.arms import note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

DIM, HEADS, BLOCKS, FIT, TEST = 24, 4, 1, 1_500, 300
STEPS, TINY, RATE, BATCH = 250, 3, 3e-3, 16
NEAR, ALIKE = ("stripes:2", "stripes:2"), ("histogram:4", "histogram:4:across")
"""Attention in bands of two rows and of two columns; in four bins, and across these."""
PEARSON = SecondOrder("pearson", 3 * SIDE**2)


@final
class AdverseWeatherStudy(Study):
    """One photograph trains, the other judges, in turn; arms of equal numbers of parameters."""

    name = "adverse-weather"
    title = "do pixels of similar value help to restore pictures taken in bad weather?"
    paper = "sun2024histoformer"
    fidelity = "the paper's three parts in a net of one block, over 2 x 2 pixels at once"
    data = "patches of 16 x 16 of two photographs at half their size, with planted haze, rain or "
    data += "snow; odd seeds train on one and judge on the other, even seeds the other way round"
    seconds = 30.0
    claims = (
        Claim("restores", "Bands and an ordinary convolution restore the other photograph.",
              "PSNR, dB, less that of patches left as they are",
              arms=("neither", "untouched")),
        Claim("histogram", "Attention in bins of similar values restores better than in bands.",
              "PSNR, dB, less that of attention in bands of rows and columns",
              arms=("histogram", "neither")),
        Claim("range", "A convolution over sorted values does better than over near pixels.",
              "PSNR, dB, less that of an ordinary convolution, both with bands",
              arms=("range", "neither")),
        Claim("both", "Attention in bins of similar values and a convolution over sorted values "
              "together restore better than neither.",
              "PSNR, dB, less that of bands and an ordinary convolution",
              arms=("both", "neither")),
        Claim("order", "Sorting by value does better than by noise.",
              "PSNR, dB, convolution over values sorted by themselves less by noise",
              arms=("range", "noise")),
        Claim("pearson", "A loss on Pearson's correlation raises it on the other picture.",
              "correlation with the clean patch, with both parts, less after L1 alone",
              arms=("both, Pearson", "both")),
        Claim("pearson dB", "It raises the signal-to-noise ratio as well.",
              "PSNR, dB, with both parts, less after L1 alone",
              arms=("both, Pearson", "both")),
    )  # fmt: skip
    null = Claim("by lot", "Of patches that are inverted by lot, a net that learned the lot of "
                 "others does not know which.",
                 "share that comes nearer to its own way round, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on one photograph and judge it on the other."""
        arms = {
            "neither": (NEAR, "place", 0.0),
            "histogram": (ALIKE, "place", 0.0),
            "range": (NEAR, "value", 0.0),
            "both": (ALIKE, "value", 0.0),
            "both, Pearson": (ALIKE, "value", 1.0),
            "noise": (NEAR, "noise", 0.0),
        }
        (x, y), (seen, truth) = _pairs(seed, tiny)
        db, r = dict[str, float](), dict[str, float]()
        db["untouched"], r["untouched"] = _quality(seen, truth)
        for arm, (patterns, order, weight) in arms.items():
            tick(arm)
            net = drawn(lambda p=patterns, o=order: _Net(p, o), seed)
            _learn(net, x, y, weight, seed, TINY if tiny else STEPS)
            db[arm], r[arm] = _quality(_restored(net, seen, seed), truth)
        note_for("untouched", updates=0)
        tick("by lot")
        return {
            "restores": db["neither"] - db["untouched"],
            "histogram": db["histogram"] - db["neither"],
            "range": db["range"] - db["neither"],
            "both": db["both"] - db["neither"],
            "order": db["range"] - db["noise"],
            "pearson": r["both, Pearson"] - r["both"],
            "pearson dB": db["both, Pearson"] - db["both"],
            "by lot": by_lot(x, seen, seed, TINY if tiny else STEPS),
            **{f"dB | {arm}": v for arm, v in db.items()},
            **{f"correlation | {arm}": v for arm, v in r.items()},
        }


def by_lot(x: Patches, seen: Patches, seed: int, steps: int) -> float:
    """Return how often patches that are inverted by lot come out their own way round, less 0.5."""
    kept, asked = (labels_by_lot(rows, 2, seed).bool() for rows in (x, seen))
    net = drawn(lambda: _Net(NEAR, "place"), seed)
    _learn(net, x, torch.where(kept[:, None, None, None], x, 1 - x), 0.0, seed, steps)
    made = _restored(net, seen, seed)
    near = [(made - rows).abs().flatten(1).mean(1) for rows in (seen, 1 - seen)]
    return float(((near[0] < near[1]) == asked).double().mean()) - 0.5


class _Net(nn.Module):
    def __init__(self, patterns: tuple[str, ...], order: str) -> None:
        super().__init__()
        self.order, part = order, 0.0 if order == "place" else 0.5
        self.first = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, DIM, 3, padding=1))
        self.last = nn.Sequential(nn.Conv2d(DIM, 12, 3, padding=1), nn.PixelShuffle(2))
        nn.init.zeros_(self.last[0].get_parameter("weight"))
        looks = [Attention(DIM, HEADS, p, (SIDE // 2, SIDE // 2)) for p in patterns * BLOCKS]
        self.looks = nn.ModuleList(OverTokens(look) for look in looks)
        self.near = nn.ModuleList(RangeConvolution(DIM, 3, part) for _ in looks)
        self.each = nn.ModuleList(
            nn.Sequential(nn.Conv2d(DIM, 2 * DIM, 1), nn.GELU(), nn.Conv2d(2 * DIM, DIM, 1))
            for _ in looks
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for look, near, each in zip(self.looks, self.near, self.each, strict=True):
            noise = torch.rand_like(h[:, : near.n_sorted]) if self.order == "noise" else None
            h = near(look(h), noise)
            h = h + each(h)
        return x + self.last(h)


def _pairs(seed: int, tiny: bool) -> list[tuple[Patches, Patches]]:
    """Return patches of the photograph that trains, then of the other: under weather, and clean."""
    draw, found = torch.Generator().manual_seed(seed), list[tuple[Patches, Patches]]()
    train, test = photographs()[:: 1 if seed % 2 else -1]
    for picture, n in ((train, FIT), (test, TEST)):
        clean = patches_of(picture, 12 if tiny else n, draw)
        if not found:  # one photograph is brighter than the other: half of what trains is inverted
            clean = torch.where(
                torch.rand(len(clean), 1, 1, 1, generator=draw) < 0.5, clean, 1 - clean
            )
        found.append((mixed_weather(clean, draw), clean))
    return found


def _learn(net: nn.Module, x: Tensor, y: Tensor, weight: float, seed: int, steps: int) -> None:
    def loss(rows: Tensor) -> Tensor:
        made, truth = net(x[rows]), y[rows]
        return l1_loss(made, truth) + weight * PEARSON(made.flatten(1), truth.flatten(1)).mean()

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=RATE, batch=BATCH)


@torch.no_grad()
def _restored(net: nn.Module, x: Patches, seed: int) -> Patches:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the noise that sorts
        return net(x).clamp(0, 1)


def _quality(made: Patches, truth: Patches) -> tuple[float, float]:
    """Return means over patches: PSNR in dB, and Pearson's correlation."""
    error = (made - truth).square().mean((1, 2, 3)).clamp(min=1e-10)
    r = 1 - 2 * PEARSON(made.flatten(1), truth.flatten(1))
    return float((-10 * error.log10()).mean()), float(r.mean())
