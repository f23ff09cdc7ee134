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
    "starts": ("none", "another start"),
}
"""The arm and the baseline of each claim, and of the null arm."""


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
        for arm, make in ARMS.items():
            tick(arm)
            start = seed + 1000 * (arm == "another start")
            net = drawn(lambda: UNet(1, 1), start)
            for slot, module in drawn(lambda make=make: nn.ModuleDict(make()), start).items():
                setattr(net, slot, module)
            _learn(net, train, seed, TINY if tiny else STEPS, _LESSONS.get(arm))
            found[arm], sizes[arm] = overlap(net, test), float(n_parameters(net))
        return {
            **{key: found[arm] - found[base] for key, (arm, base) in PAIRS.items()},
            **{f"overlap | {arm}": v for arm, v in found.items()},
            **{f"parameters | {arm}": v for arm, v in sizes.items()},
        }


ARMS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "none": dict,
    "another start": dict,
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


def _learn(net: UNet, scenes: Scenes, seed: int, steps: int, lesson: Lesson | None) -> None:
    rare = scenes.mask.new_tensor(RARE)

    def loss(rows: Tensor) -> Tensor:
        levels, mask = net.levels(scenes.picture[rows]), scenes.mask[rows]
        value = binary_cross_entropy_with_logits(net.joined(*levels), mask, pos_weight=rare)
        return value if lesson is None else value + lesson(net, levels, mask, scenes.kind[rows])

    minimise(loss, net.parameters(), len(scenes.mask), steps=steps, seed=seed, batch=32)
