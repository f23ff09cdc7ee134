"""Segmentation of scenes by U-Nets with different modules of equal size.

Three digits and clutter; the mask to draw is that of the largest digit, which asks for the others.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention, Exchange, UnitGate
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._unet import WIDTH, Mixed, OverTokens, UNet, n_parameters
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, CELL, STEPS, TINY, SCENES, FIT = 24, 8, 320, 4, 2_000, 1_200
INK = 0.5


@final
class DenseCompositesStudy(Study):
    """A U-Net without a module, with extra maps, attention, a gate, or shifted channels."""

    name = "dense-composites"
    title = "which module helps a network that draws masks?"
    paper = "hille2022swtrunet"
    fidelity = "modules alone, in a net of three levels; masks alone, no boxes"
    data = "scenes of 24 x 24 with three digits and clutter; digits of test scenes are not those "
    data += "of training"
    claims = (
        Claim("attention", "Attention in the depth helps more than as large extra maps.",
              "intersection over union, attention less extra maps"),
        Claim("gate", "A gate of channels and places in the depth helps more than extra maps.",
              "intersection over union, gate less extra maps"),
        Claim("shift", "Channels shifted between levels help more than extra maps.",
              "intersection over union, shift less extra maps"),
    )  # fmt: skip
    null = Claim("starts", "Two starts of the net without a module draw masks alike.",
                 "intersection over union, difference of two starts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same scenes."""
        x, label = shuffled_digits(seed)
        n = 24 if tiny else SCENES
        train, test = (
            _scenes(x[rows], label[rows], seed + i, m)
            for i, (rows, m) in enumerate([(slice(FIT), n), (slice(FIT, None), n // 5)])
        )
        attention = n_parameters(Attention(WIDTH))
        arms: dict[str, Any] = {
            "none": dict,
            "another start": dict,
            "extra maps": lambda: {"deep": Mixed(WIDTH, attention // (2 * WIDTH))},
            "attention": lambda: {"deep": OverTokens(Attention(WIDTH))},
            "gate": lambda: {"deep": UnitGate(WIDTH, "channels+space")},
            "shift": lambda: {"meeting": Exchange("shift", WIDTH)},
        }
        found: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for arm, make in arms.items():
            tick(arm)
            start = seed + 1000 * (arm == "another start")
            net = drawn(lambda make=make: UNet(1, 1, **make()), start)
            _learn(net, *train, seed, TINY if tiny else STEPS)
            found[arm], sizes[arm] = _overlap(net, *test), float(n_parameters(net))
        return {
            **{arm: found[arm] - found["extra maps"] for arm in ("attention", "gate", "shift")},
            "starts": found["none"] - found["another start"],
            **{f"overlap | {arm}": v for arm, v in found.items()},
            **{f"parameters | {arm}": v for arm, v in sizes.items()},
        }


def _scenes(x: Tensor, label: Tensor, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Return scenes (scene, 1, line, column) and the mask of the largest digit of each."""
    draw = torch.Generator().manual_seed(seed)
    scenes = torch.zeros(n, SIDE, SIDE)
    masks = torch.zeros(n, SIDE, SIDE)
    cells = (SIDE // CELL) ** 2
    for i in range(n):
        kinds = torch.randperm(10, generator=draw)[:3]
        places = torch.randperm(cells, generator=draw)[:3].tolist()
        for kind, place in zip(kinds, places, strict=True):
            of_kind = torch.nonzero(label == kind).flatten()
            image = x[of_kind[torch.randint(len(of_kind), (1,), generator=draw)]].reshape(8, 8)
            a, b = CELL * (place // (SIDE // CELL)), CELL * (place % (SIDE // CELL))
            scenes[i, a : a + CELL, b : b + CELL] = image
            if kind == kinds.max():
                masks[i, a : a + CELL, b : b + CELL] = (image > INK).float()
    clutter = (torch.rand(scenes.shape, generator=draw) < 0.05) & (scenes == 0)
    return torch.where(clutter, 0.7, scenes)[:, None], masks[:, None]


def _learn(net: nn.Module, x: Tensor, mask: Tensor, seed: int, steps: int) -> None:
    heavy = x.new_tensor(10.0)

    def loss(rows: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(net(x[rows]), mask[rows], pos_weight=heavy)

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, batch=32)


@torch.no_grad()
def _overlap(net: nn.Module, x: Tensor, mask: Tensor) -> float:
    """Return the mean intersection over union of predicted and true masks."""
    drawn_mask, true = net(x) > 0, mask > 0
    both = (drawn_mask & true).sum((1, 2, 3)).double()
    return float((both / (drawn_mask | true).sum((1, 2, 3)).clamp(min=1)).mean())
