"""Mixup at the input, at a hidden layer, decoupled, and for a student of a teacher.

Two hundred labels of digits, where mixing may help.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import Mixup
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

FEW, REST, STEPS, TINY = 200, 797, 600, 15
ARMS = ("none", "input", "decoupled", "hidden", "taught", "teacher")


@final
class MixupStudy(Study):
    """A perceptron with few labels, trained on mixed examples in four ways."""

    name = "mixup"
    title = "does mixing examples help where labels are few?"
    paper = "zhang2018mixup"
    fidelity = "one net and one strength of mixing; the papers train large nets on many pictures"
    data = "digits: 200 to train on, 797 to judge; the teacher of two students saw 800 others"
    claims = (
        Claim("input", "Mixing inputs helps.", "accuracy less that of plain training",
              arms=("input", "none")),
        Claim("decoupled", "The decoupled loss helps beyond plain mixing.",
              "accuracy less that of mixed inputs",
              arms=("decoupled", "input")),
        Claim("hidden", "Mixing hidden states helps beyond mixing inputs.",
              "accuracy less that of mixed inputs",
              arms=("hidden", "input")),
        Claim("teacher", "A student of a teacher learns more on mixed rows than on plain ones.",
              "accuracy, taught on mixed rows less taught on the same rows, not mixed"),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy with mixed inputs, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("teacher")
        teacher = learned(mlp(64), x[FEW:-REST], label[FEW:-REST], seed + 9).module
        found: dict[str, float] = {}
        for arm in ARMS:
            tick(arm)
            found[arm] = _accuracy(arm, x, label, teacher, seed, steps)
        tick("labels by lot")
        return {
            "input": found["input"] - found["none"],
            "decoupled": found["decoupled"] - found["input"],
            "hidden": found["hidden"] - found["input"],
            "teacher": found["teacher"] - found["taught"],
            "lots": by_lot(x, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy with mixed inputs on labels by lot, less that of chance."""
    return _accuracy("input", x, labels_by_lot(x, 10, seed), None, seed, steps) - 0.1


def _accuracy(
    arm: str, x: Tensor, label: Tensor, teacher: nn.Module | None, seed: int, steps: int
) -> float:
    net, unmixed = drawn(lambda: mlp(64), seed), float(arm == "taught")
    mix = Mixup(decoupled=arm == "decoupled", unmixed=unmixed, seed=seed)

    def loss(rows: Tensor) -> Tensor:
        given = x[rows]
        if arm == "none":
            return cross_entropy(net(given), label[rows])
        if arm == "hidden":
            return mix(net[2:](mix.change(net[:2](given))), label[rows])
        mixed = mix.change(given)
        if teacher is not None and arm in ("taught", "teacher"):
            with torch.no_grad():
                wanted = teacher(mixed)
            return mix(net(mixed), label[rows], teacher=wanted)
        return mix(net(mixed), label[rows])

    minimise(loss, net.parameters(), FEW, steps=steps, seed=seed)
    return accuracy(net, x[-REST:], label[-REST:])
