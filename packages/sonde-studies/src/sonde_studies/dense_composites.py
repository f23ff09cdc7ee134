"""Segmentation of scenes by U-Nets with different modules.

Three digits and clutter; the mask to draw is that of the largest digit, which asks for the others.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention, Exchange, UnitGate
from sonde_studies._mask_modules import RARE, ClassGate, FusedLevels, KeyPoints
from sonde_studies._mask_scenes import Scenes, masked_scenes, overlap
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._unet import WIDTH, Mixed, OverTokens, ShiftedWithin, UNet, n_parameters
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

STEPS, TINY, SCENES, FIT = 320, 4, 2_000, 1_200
PAIRS = {
    "attention": ("attention", "extra maps"),
    "gate": ("gate", "small maps"),
    "place gate": ("place gate", "middle maps"),
    "shift": ("shift", "own maps"),
    "crossing": ("shift", "shift within"),
    "bridge": ("bridge", "merge"),
    "class gate": ("class attention", "attention by lot"),
    "two ways": ("two ways", "one way"),
    "all levels": ("all levels", "two ways"),
}
"""The arm and the baseline of each claim."""


@final
class DenseCompositesStudy(Study):
    """A U-Net without a module, and with modules at its bottom, its meeting, or its levels."""

    name = "dense-composites"
    title = "which module helps a network that draws masks?"
    paper = "hille2022swtrunet"
    fidelity = "modules alone, in a net of three levels; masks alone, no boxes; places of a bridge "
    fidelity += "differ along one axis; two baselines are larger than their module: extra maps "
    fidelity += (
        "(1,138 parameters) than attention (1,088), the merge (1,934) than the bridge (1,889)"
    )
    data = "scenes of 24 x 24 with three digits and clutter; digits of test scenes are not those "
    data += "of training"
    claims = (
        Claim("attention", "Attention in the depth helps more than as large extra maps.",
              "intersection over union, attention less extra maps",
              arms=("attention", "extra maps")),
        Claim("gate", "A gate of channels in the depth helps more than maps as large (280 each).",
              "intersection over union, gate less small maps",
              arms=("gate", "small maps")),
        Claim("place gate", "A gate of channels and places does (379 parameters each).",
              "intersection over union, place gate less middle maps",
              arms=("place gate", "middle maps")),
        Claim("shift", "Channels shifted between levels help more than maps that shift none (512).",
              "intersection over union, shift less own maps",
              arms=("shift", "own maps")),
        Claim("crossing", "They help more than channels shifted within their level (512 each).",
              "intersection over union, shift less shift within",
              arms=("shift", "shift within")),
        Claim("bridge", "A bridge to key points helps more than a merge that learns key points "
              "too.",
              "intersection over union, bridge less merge",
              arms=("bridge", "merge")),
        Claim("class gate", "Gates by the attention of a class help more than gates by lot.",
              "intersection over union, class attention less the same attention by lot",
              arms=("class attention", "attention by lot")),
        Claim("two ways", "Levels fused with both neighbours beat levels fused from above alone "
              "(1,584 parameters each).",
              "intersection over union, two ways less one way",
              arms=("two ways", "one way")),
        Claim("all levels", "Shifts between the first and the last level add to it (1,584 each).",
              "intersection over union, all levels less two ways",
              arms=("all levels", "two ways")),
    )  # fmt: skip
    null = Claim("held", "A gate that is held at 1 in training leaves the masks as they are.",
                 "share of pixels whose drawn probability changes")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same scenes."""
        train, test = scenes_of(seed, tiny)
        steps = TINY if tiny else STEPS
        nets: dict[str, UNet] = {}
        for arm, make in ARMS.items():
            tick(arm)
            nets[arm] = trained_with(make, train, seed, steps, _LESSONS.get(arm))
        tick("held")
        found = {arm: overlap(net, test) for arm, net in nets.items()}
        return {
            **{key: found[arm] - found[base] for key, (arm, base) in PAIRS.items()},
            "held": moved_by(held_gate, nets["none"], train, test, seed, steps),
            **{f"overlap | {arm}": v for arm, v in found.items()},
            **{f"parameters | {arm}": float(n_parameters(net)) for arm, net in nets.items()},
        }


def scenes_of(seed: int, tiny: bool) -> tuple[Scenes, Scenes]:
    """Return scenes to learn from, and scenes of other digits to judge by."""
    x, label = shuffled_digits(seed)
    n = 24 if tiny else SCENES
    train, test = (
        masked_scenes(x[rows], label[rows], seed + i, m)
        for i, (rows, m) in enumerate([(slice(FIT), n), (slice(FIT, None), n // 5)])
    )
    return train, test


ARMS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "none": dict,
    "extra maps": lambda: {"deep": Mixed(WIDTH, n_parameters(Attention(WIDTH)) // (2 * WIDTH))},
    "attention": lambda: {"deep": OverTokens(Attention(WIDTH))},
    "gate": lambda: {"deep": UnitGate(WIDTH, "channels+space")},
    "small maps": lambda: {"deep": Mixed(WIDTH, 8)},
    "place gate": lambda: {"deep": UnitGate(WIDTH, "channels+space", "both")},
    "middle maps": lambda: {"deep": Mixed(WIDTH, 11)},
    "shift": lambda: {"meeting": Exchange("shift", WIDTH)},
    "own maps": lambda: {"meeting": Exchange("shift", WIDTH, move=0.0)},
    "shift within": lambda: {"meeting": ShiftedWithin(2)},
    "merge": lambda: {"meeting": KeyPoints(bridged=False)},
    "bridge": lambda: {"meeting": KeyPoints(bridged=True)},
    "attention by lot": lambda: {"deep": ClassGate(by_lot=True)},
    "class attention": lambda: {"deep": ClassGate(by_lot=False)},
    "one way": lambda: {"across": FusedLevels("coarser")},
    "two ways": lambda: {"across": FusedLevels("both")},
    "all levels": lambda: {"across": FusedLevels("both", non_adjacent=True)},
}


Lesson = Callable[[Any, tuple[Tensor, ...], Tensor, Tensor], Tensor]
"""Takes a net, its levels, masks and largest digits; a loss of the net's module."""


def _of_points(net: Any, levels: tuple[Tensor, ...], mask: Tensor, kind: Tensor) -> Tensor:
    return net.meeting.lesson(levels[1], mask)


def _of_class(net: Any, levels: tuple[Tensor, ...], mask: Tensor, kind: Tensor) -> Tensor:
    return net.deep.lesson(levels[2], kind)


_LESSONS: dict[str, Lesson] = {
    "merge": _of_points,
    "bridge": _of_points,
    "attention by lot": _of_class,
    "class attention": _of_class,
}


def trained_with(
    make: Callable[[], dict[str, nn.Module]],
    scenes: Scenes,
    seed: int,
    steps: int,
    lesson: Lesson | None = None,
) -> UNet:
    """Return a net with modules at its slots, after training.

    Parameters
    ----------
    make : callable
        Returns a module for each slot of the net.
    scenes : Scenes
    seed, steps : int
    lesson : Lesson, optional
        Loss of the module beside that of the masks.
    """
    net = drawn(lambda: UNet(1, 1), seed)
    for slot, module in drawn(lambda: nn.ModuleDict(make()), seed).items():
        setattr(net, slot, module)
    rare = scenes.mask.new_tensor(RARE)

    def loss(rows: Tensor) -> Tensor:
        levels, mask = net.levels(scenes.picture[rows]), scenes.mask[rows]
        value = binary_cross_entropy_with_logits(net.joined(*levels), mask, pos_weight=rare)
        return value if lesson is None else value + lesson(net, levels, mask, scenes.kind[rows])

    learned = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, learned, len(scenes.mask), steps=steps, seed=seed, batch=32)
    return net


def held_gate(bias: float = 0.0) -> dict[str, nn.Module]:
    """Return a gate of channels and places that is not trained; without a bias it is 1."""
    gate = UnitGate(WIDTH, "channels+space", "both").requires_grad_(False)
    assert gate.space is not None
    gate.space.get_parameter("bias").fill_(bias)
    return {"deep": gate}


@torch.no_grad()
def moved_by(
    make: Callable[[], dict[str, nn.Module]],
    plain: nn.Module,
    train: Scenes,
    test: Scenes,
    seed: int,
    steps: int,
) -> float:
    """Return the share of pixels whose probability modules in training change."""
    net = trained_with(make, train, seed, steps)
    one, other = (part(test.picture).sigmoid() for part in (net, plain))
    return float((one != other).double().mean())
