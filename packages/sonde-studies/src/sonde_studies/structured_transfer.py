"""Distillation of a wide convolutional net's maps, and relations, into a narrow net.

All arms see few digits, their labels and the wide net's answers; some see its maps too.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.train import Distil, StructuredTransfer
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, minimise

FEW, FIT, STEPS, TINY, WIDE, NARROW = 100, 1_200, 300, 4, 16, 4
ARMS = {"answers": (0.0, 0.0), "inside": (1.0, 0.0), "between": (0.0, 1.0), "both": (1.0, 1.0)}
Maps = list[Tensor]


@final
class StructuredTransferStudy(Study):
    """A narrow net trained on answers, on maps, on relations of maps, and on both."""

    name = "structured-transfer"
    title = "do a teacher's maps teach a narrow net more than its answers?"
    paper = "liu2020skt"
    fidelity = "digits are named in place of crowds counted; both nets have three maps"
    data = "digits: 1,200 for the teacher, 100 of them for the narrow net, 597 to judge"
    claims = (
        Claim("inside", "The maps of each layer teach more than the answers alone.",
              "accuracy, maps and answers (1.3 times the parameters) less answers",
              arms=("inside", "answers")),
        Claim("between", "So do the relations between layers.",
              "accuracy, relations and answers (1.3 times the parameters) less answers",
              arms=("between", "answers")),
        Claim("both", "The teacher's maps and relations together teach more than its answers "
              "alone.",
              "accuracy, both and answers (1.3 times the parameters) less answers",
              arms=("both", "answers")),
        Claim("teacher", "As targets the teacher's maps are better than those of an untrained net.",
              "accuracy, both less both of an untrained net",
              arms=("both", "untrained")),
    )  # fmt: skip
    null = Claim("lots", "Of a teacher of labels by lot nothing is told of other rows.",
                 "accuracy, both and answers, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the wide net, and each arm of the narrow net."""
        x, label = digit_images(seed)
        steps = TINY if tiny else STEPS
        tick("teacher")
        teacher, untrained = (
            _teacher(x, label, seed, steps),
            drawn(lambda: _Net(WIDE), seed + 1_000),
        )
        with torch.no_grad():
            maps, other = (net.maps(x[:FEW]) for net in (teacher, untrained))
            answers = teacher.named(maps)
        found = {"teacher": accuracy(teacher, x[FIT:], label[FIT:])}
        arms = {arm: (maps, weights) for arm, weights in ARMS.items()}
        arms["untrained"] = (other, ARMS["both"])
        for arm, (wanted, weights) in arms.items():
            tick(arm)
            net = drawn(lambda: _Net(NARROW), seed)
            _learn(net, x, label, answers, wanted, weights, seed, steps)
            found[arm] = accuracy(net, x[FIT:], label[FIT:])
        tick("labels by lot")
        return {
            **{arm: found[arm] - found["answers"] for arm in ("inside", "between", "both")},
            "teacher": found["both"] - found["untrained"],
            "lots": by_lot(x, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a student of maps on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    teacher, net = _teacher(x, lots, seed, steps), drawn(lambda: _Net(NARROW), seed)
    with torch.no_grad():
        maps = teacher.maps(x[:FEW])
        answers = teacher.named(maps)
    _learn(net, x, lots, answers, maps, ARMS["both"], seed, steps)
    return accuracy(net, x[FIT:], lots[FIT:]) - 0.1


def _teacher(x: Tensor, label: Tensor, seed: int, steps: int) -> "_Net":
    net = drawn(lambda: _Net(WIDE), seed)
    learn_labels(net, x[:FIT], label[:FIT], steps=steps, seed=seed)
    return net


class _Net(nn.Module):
    """Maps of 1, 2 and 4 times ``width`` channels, and a linear head on the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width * 16, 10)

    def maps(self, x: Tensor) -> Maps:
        """Return the map of each layer."""
        one = self.first(x).relu()
        two = self.second(one).relu()
        return [one, two, self.third(two).relu()]

    def forward(self, x: Tensor) -> Tensor:
        return self.named(self.maps(x))

    def named(self, maps: Maps) -> Tensor:
        """Return the logits from the last map."""
        return self.head(maps[-1].flatten(1))


def _learn(
    net: _Net,
    x: Tensor,
    label: Tensor,
    answers: Tensor,
    wanted: Maps,
    weights: tuple[float, float],
    seed: int,
    steps: int,
) -> None:
    distil, dims = Distil(1.0), [(NARROW, WIDE), *[(2 * NARROW, 2 * WIDE)] * 2]
    transfer = drawn(lambda: StructuredTransfer(dims, *weights), seed)

    def loss(rows: Tensor) -> Tensor:
        maps = net.maps(x[rows])
        value = distil(net.named(maps), answers[rows], label[rows])
        return value + transfer(maps, [m[rows] for m in wanted]) if any(weights) else value

    trained = [*net.parameters(), *transfer.parameters()]
    minimise(loss, trained, FEW, steps=steps, seed=seed)
