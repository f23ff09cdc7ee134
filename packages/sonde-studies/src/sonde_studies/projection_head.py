"""Information that a contrastive projection head keeps from the states below it.

Digits whose brightness and columns are changed in every view. The encoder is a small perceptron.
"""

from itertools import pairwise
from math import exp, log
from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import UnitGate
from sonde.measure import participation_ratio
from sonde.train import Contrast
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note, note_again, part
from sonde_studies.parts.heads import head_accuracy, linear_head, strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM = 1_000, 600, 20, 32
HEADS = ("none", "mlp", "fixed")


@final
class ProjectionHeadStudy(Study):
    """Contrast with a learned, a fixed or no head, probed before and after the head."""

    name = "projection-head"
    title = "what does a head keep from the states below it?"
    paper = "xue2024projection"
    fidelity = "probes of digit and brightness in place of coarse and fine labels"
    data = "digits whose brightness was drawn from three; views change brightness and columns"
    claims = (
        Claim("kept", "Below a learned head the brightness, which views change, is kept.",
              "accuracy of a probe of brightness, before the head less after it",
              arms=("mlp", "mlp, after the head")),
        Claim("more", "Below a learned head more of the brightness is kept than without a head.",
              "accuracy of a probe of brightness, before the learned head (a tenth more "
              "parameters) less without a head",
              arms=("mlp", "none")),
        Claim("class", "The digit is not said worse before the head than after it, to a point.",
              "accuracy of the strongest of three probes of the digit, before less after, and "
              "0.01",
              arms=("mlp", "mlp, after the head")),
        Claim("gates", "Below a head of fixed gates more of the brightness is kept, too.",
              "accuracy of a probe of brightness, before the fixed gates less without a head",
              arms=("fixed", "none")),
        Claim("unequal", "Features get more unequal with each layer of a head of three.",
              "logarithm of the participation ratio below a layer over that above it, the smallest "
              "of three",
              arms=("head of three, below", "head of three, above")),
        Claim("by training", "They get more so than in the untrained head.",
              "logarithm of the participation ratio below the head over that above, trained less "
              "untrained",
              arms=("head of three", "head of three, untrained")),
    )  # fmt: skip
    null = Claim(
        "fixed", "A head of fixed gates can be undone by a linear probe: nothing changes.",
        "accuracy of a probe of brightness, before the fixed head less after it",
    )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each head and probe both sides of it."""
        x, label = shuffled_digits(seed)
        light = torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(seed))
        x = x * (0.4 + 0.3 * light)[:, None]
        found: dict[str, dict[str, float]] = {}
        for head in HEADS:
            tick(head)
            found[head] = _probed(head, x, label, light, seed, TINY if tiny else STEPS)
        deep = layer_ratios(seed, tiny)
        note_again("mlp, after the head", "mlp")
        mlp, fixed = found["mlp"], found["fixed"]
        return {
            "kept": mlp["light, before"] - mlp["light, after"],
            "more": mlp["light, before"] - found["none"]["light, before"],
            "class": mlp["digit, strongest, before"] - mlp["digit, strongest, after"] + 0.01,
            "gates": fixed["light, before"] - found["none"]["light, before"],
            "fixed": fixed["light, before"] - fixed["light, after"],
            **deep,
            **{f"{head} | {name}": v for head, row in found.items() for name, v in row.items()},
        }


def layer_ratios(seed: int, tiny: bool) -> dict[str, float]:
    """Return what a head of three maps of one width does to participation ratios of fresh rows."""
    x, _ = shuffled_digits(seed)
    light = torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(seed))
    x = x * (0.4 + 0.3 * light)[:, None]

    def make() -> nn.ModuleDict:
        maps = [nn.Linear(DIM, DIM) for _ in range(3)]
        head = nn.Sequential(maps[0], nn.ReLU(), maps[1], nn.ReLU(), maps[2])
        return nn.ModuleDict({"body": _body(), "head": head})

    found = dict[str, list[float]]()
    for arm, n in (("trained", TINY if tiny else STEPS), ("untrained", 0)):
        net = drawn(make, seed)
        with part("head of three" if n else "head of three, untrained"):
            note(updates=0)
            _contrasted(net, x, seed, n)
        with torch.no_grad():
            h = net["body"](x[FIT:])
            logs = [log(float(participation_ratio(h)))]
            for layer in net["head"]:  # pyright: ignore[reportGeneralTypeIssues]
                h = layer(h)
                if isinstance(layer, nn.Linear):
                    logs.append(log(float(participation_ratio(h))))
        found[arm] = logs
    for side in ("below", "above"):
        note_again(f"head of three, {side}", "head of three")
    falls = {arm: [a - b for a, b in pairwise(logs)] for arm, logs in found.items()}
    return {
        "unequal": min(falls["trained"]),
        "by training": sum(falls["trained"]) - sum(falls["untrained"]),
        **{f"participation ratio, {arm} | {i} maps of the head": exp(v)
           for arm, logs in found.items() for i, v in enumerate(logs)},
    }  # fmt: skip


def _body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, DIM))


def _probed(
    head: str, x: Tensor, label: Tensor, light: Tensor, seed: int, steps: int
) -> dict[str, float]:
    def make() -> nn.ModuleDict:
        ends = {
            "none": nn.Identity(),
            "mlp": nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 16)),
            "fixed": UnitGate(DIM, score="fixed", kappa=1.15),
        }
        return nn.ModuleDict({"body": _body(), "head": ends[head]})

    net = drawn(make, seed)
    _contrasted(net, x, seed, steps)
    with torch.no_grad():
        before = net["body"](x)
        sides = {"before": before, "after": net["head"](before)}

    strongest = {
        f"digit, strongest, {side}": strongest_accuracy(rows, label, FIT)
        for side, rows in sides.items()
        if head == "mlp"
    }
    return strongest | {
        f"{what}, {side}": head_accuracy(linear_head(1.0), rows, truth, FIT)
        for what, truth in (("light", light), ("digit", label))
        for side, rows in sides.items()
    }


def _contrasted(net: nn.ModuleDict, x: Tensor, seed: int, steps: int) -> None:
    """Train a body and its head on pairs of views."""
    contrast = Contrast(0.2)

    def seen(rows: Tensor) -> Tensor:
        bright = x[rows] * (0.5 + torch.rand(len(rows), 1))
        shift = int(torch.randint(-1, 2, ()))
        return bright.reshape(-1, 8, 8).roll(shift, 2).flatten(1)

    def loss(rows: Tensor) -> Tensor:
        views = torch.cat([seen(rows), seen(rows)])
        view = torch.arange(2).repeat_interleave(len(rows))
        return contrast(net["head"](net["body"](views)), view=view)

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
