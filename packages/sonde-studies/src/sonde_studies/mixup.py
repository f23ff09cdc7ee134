"""Mixup at the input, at a hidden layer, decoupled, and for students and teachers.

Two hundred labels of digits, where mixing may help.
"""

import math
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import Mixup
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

FEW, REST, STEPS, TINY = 200, 797, 600, 15
ARMS = ("none", "input", "decoupled", "hidden")
STUDENTS: dict[str, tuple[str, float, float | Literal["spread"]]] = {
    "plain, of plain": ("plain teacher", 1.0, 1.0),
    "plain, of mixed": ("mixed teacher", 1.0, 1.0),
    "mixed, of plain": ("plain teacher", 0.0, 1.0),
    "mixed, of mixed": ("mixed teacher", 0.0, 1.0),
    "half mixed, of plain": ("plain teacher", 0.5, 1.0),
    "mixed, of mixed, rescaled": ("mixed teacher", 0.0, "spread"),
}
"""Each student's teacher, the share of its rows that stay as they are, and the temperature."""
TEACHERS = ("plain teacher", "mixed teacher")
BENT = (*TEACHERS, "plain, of plain", "mixed, of plain")


@final
class MixupStudy(Study):
    """A perceptron with few labels, trained on mixed examples in four ways."""

    name = "mixup"
    title = "does mixing examples help where labels are few?"
    paper = "zhang2018mixup"
    fidelity = "one net and one strength of mixing; the papers train large nets on many pictures"
    data = "digits: 200 to train on, 797 to judge; the teachers of students saw 800 others"
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
              "accuracy, student on mixed rows less on the same rows, not mixed",
              arms=("mixed, of plain", "plain, of plain")),
        Claim("smooth", "A teacher that learned on mixed rows is smoother: its answer between two "
              "rows is nearer to the mean of both.",
              "squared distance of probabilities, log of plain over mixed teacher",
              arms=("plain teacher", "mixed teacher")),
        Claim("mixed teacher", "A teacher that learned on mixed rows teaches a student on plain "
              "rows less.",
              "accuracy, student of the plain teacher less student of the mixed one",
              arms=("plain, of plain", "plain, of mixed")),
        Claim("smooth student", "Mixed rows make a student smoother, too.",
              "squared distance of probabilities, log of plain over mixed rows",
              arms=("plain, of plain", "mixed, of plain")),
        Claim("partial", "A student with half of its rows mixed learns more than with all.",
              "accuracy, half mixed less mixed", arms=("half mixed, of plain", "mixed, of plain")),
        Claim("rescaled", "Logits over their standard deviation help a student of the mixed "
              "teacher.", "accuracy, rescaled less as they are",
              arms=("mixed, of mixed, rescaled", "mixed, of mixed")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy with mixed inputs, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        found, nets = dict[str, float](), dict[str, nn.Module]()
        for name in TEACHERS:
            tick(name)
            rows, of = x[FEW:-REST], label[FEW:-REST]
            arm = "input" if name == "mixed teacher" else "none"
            nets[name] = _learned(arm, rows, of, seed + 9, steps)
        for arm in ARMS:
            tick(arm)
            nets[arm] = _learned(arm, x[:FEW], label[:FEW], seed, steps)
        for arm, (teacher, unmixed, temperature) in STUDENTS.items():
            tick(arm)
            mix = Mixup(unmixed=unmixed, temperature=temperature, seed=seed)
            nets[arm] = _taught(nets[teacher], mix, x[:FEW], label[:FEW], seed, steps)
        found = {arm: accuracy(net, x[-REST:], label[-REST:]) for arm, net in nets.items()}
        bent = {arm: _bend(nets[arm], x[-REST:], seed) for arm in BENT}
        tick("labels by lot")
        return {
            "input": found["input"] - found["none"],
            "decoupled": found["decoupled"] - found["input"],
            "hidden": found["hidden"] - found["input"],
            "teacher": found["mixed, of plain"] - found["plain, of plain"],
            "smooth": math.log(bent["plain teacher"] / bent["mixed teacher"]),
            "mixed teacher": found["plain, of plain"] - found["plain, of mixed"],
            "smooth student": math.log(bent["plain, of plain"] / bent["mixed, of plain"]),
            "partial": found["half mixed, of plain"] - found["mixed, of plain"],
            "rescaled": found["mixed, of mixed, rescaled"] - found["mixed, of mixed"],
            "lots": by_lot(x, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"bend | {arm}": v for arm, v in bent.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy with mixed inputs on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    net = _learned("input", x[:FEW], lots[:FEW], seed, steps)
    return accuracy(net, x[-REST:], lots[-REST:]) - 0.1


def _learned(arm: str, x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Module:
    """Return a net that learned labels on rows that are mixed in one of the ways, or not."""
    net = drawn(lambda: mlp(64), seed)
    mix = Mixup(decoupled=arm == "decoupled", seed=seed)

    def loss(rows: Tensor) -> Tensor:
        given = x[rows]
        if arm == "none":
            return cross_entropy(net(given), label[rows])
        if arm == "hidden":
            return mix(net[2:](mix.change(net[:2](given))), label[rows])
        return mix(net(mix.change(given)), label[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net


def _taught(
    teacher: nn.Module, mix: Mixup, x: Tensor, label: Tensor, seed: int, steps: int
) -> nn.Module:
    """Return a student that learned a teacher's answers on the rows that ``mix`` mixes."""
    net = drawn(lambda: mlp(64), seed)

    def loss(rows: Tensor) -> Tensor:
        mixed = mix.change(x[rows])
        with torch.no_grad():
            wanted = teacher(mixed)
        return mix(net(mixed), label[rows], teacher=wanted)

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net


@torch.no_grad()
def _bend(net: nn.Module, x: Tensor, seed: int) -> float:
    """Return the squared distance of probabilities between two rows from the rows' mean."""
    mix = Mixup(per="row", seed=seed)
    between = net(mix.change(x)).softmax(1)
    return float(mix.smoothness(between, net(x).softmax(1)))
