"""Segmentation of scenes by U-Nets with different modules.

Three digits and clutter; the mask to draw is that of the largest digit, which asks for the others.
"""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention, Exchange, UnitGate
from sonde_studies._mask_modules import RARE, ClassGate, FusedLevels, KeyPoints
from sonde_studies._mask_scenes import Scenes, masked_scenes, overlap
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._unet import WIDTH, Mixed, OverTokens, UNet, n_parameters
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

STEPS, TINY, SCENES, FIT = 320, 4, 2_000, 1_200


@final
class DenseCompositesStudy(Study):
    """A U-Net without a module, and with modules at its bottom, its meeting, or its levels."""

    name = "dense-composites"
    title = "which module helps a network that draws masks?"
    paper = "hille2022swtrunet"
    fidelity = "modules alone, in a net of three levels; masks alone, no boxes; places of a bridge "
    fidelity += "differ along one axis; extra maps (1,138 parameters) are as large as attention "
    fidelity += "(1,088), not as the gate (280) or the shifts (none)"
    data = "scenes of 24 x 24 with three digits and clutter; digits of test scenes are not those "
    data += "of training"
    claims = (
        Claim("attention", "Attention in the depth helps more than as large extra maps.",
              "intersection over union, attention less extra maps"),
        Claim("gate", "A gate in the depth helps more than extra maps four times as large.",
              "intersection over union, gate less extra maps"),
        Claim("shift", "Channels shifted between levels, no parameters, help more than extra maps.",
              "intersection over union, shift less extra maps"),
        Claim("bridge", "A bridge to key points helps more than a merge that learns them too.",
              "intersection over union, bridge less merge"),
        Claim("class gate", "Gates by the attention of a class help more than gates by lot.",
              "intersection over union, class attention less the same attention by lot"),
        Claim("two ways", "Levels fused with both neighbours beat levels fused from above alone.",
              "intersection over union, two ways less one way"),
        Claim("all levels", "Shifts between the first and the last level add to it.",
              "intersection over union, all levels less two ways"),
    )  # fmt: skip
    null = Claim("starts", "Two starts of the net without a module draw masks alike.",
                 "intersection over union, difference of two starts")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same scenes."""
        x, label = shuffled_digits(seed)
        n = 24 if tiny else SCENES
        train, test = (
            masked_scenes(x[rows], label[rows], seed + i, m)
            for i, (rows, m) in enumerate([(slice(FIT), n), (slice(FIT, None), n // 5)])
        )
        found: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for arm, make in _ARMS.items():
            tick(arm)
            start = seed + 1000 * (arm == "another start")
            net = drawn(lambda: UNet(1, 1), start)
            for slot, module in drawn(lambda make=make: nn.ModuleDict(make()), start).items():
                setattr(net, slot, module)
            _learn(net, train, seed, TINY if tiny else STEPS, _LESSONS.get(arm))
            found[arm], sizes[arm] = overlap(net, test), float(n_parameters(net))
        return {
            **{arm: found[arm] - found["extra maps"] for arm in ("attention", "gate", "shift")},
            "bridge": found["bridge"] - found["merge"],
            "class gate": found["class attention"] - found["attention by lot"],
            "two ways": found["two ways"] - found["one way"],
            "all levels": found["all levels"] - found["two ways"],
            "starts": found["none"] - found["another start"],
            **{f"overlap | {arm}": v for arm, v in found.items()},
            **{f"parameters | {arm}": v for arm, v in sizes.items()},
        }


_ARMS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "none": dict,
    "another start": dict,
    "extra maps": lambda: {"deep": Mixed(WIDTH, n_parameters(Attention(WIDTH)) // (2 * WIDTH))},
    "attention": lambda: {"deep": OverTokens(Attention(WIDTH))},
    "gate": lambda: {"deep": UnitGate(WIDTH, "channels+space")},
    "shift": lambda: {"meeting": Exchange("shift", WIDTH)},
    "merge": lambda: {"meeting": KeyPoints(bridged=False)},
    "bridge": lambda: {"meeting": KeyPoints(bridged=True)},
    "attention by lot": lambda: {"deep": ClassGate(by_lot=True)},
    "class attention": lambda: {"deep": ClassGate(by_lot=False)},
    "one way": lambda: {"across": FusedLevels(two_ways=False)},
    "two ways": lambda: {"across": FusedLevels(two_ways=True)},
    "all levels": lambda: {"across": FusedLevels(two_ways=True, non_adjacent=True)},
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


def _learn(net: UNet, scenes: Scenes, seed: int, steps: int, lesson: Lesson | None) -> None:
    rare = scenes.mask.new_tensor(RARE)

    def loss(rows: Tensor) -> Tensor:
        levels, mask = net.levels(scenes.picture[rows]), scenes.mask[rows]
        value = binary_cross_entropy_with_logits(net.joined(*levels), mask, pos_weight=rare)
        return value if lesson is None else value + lesson(net, levels, mask, scenes.kind[rows])

    minimise(loss, net.parameters(), len(scenes.mask), steps=steps, seed=seed, batch=32)
