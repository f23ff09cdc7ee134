"""Test whether a net can learn from an equally good net without losing accuracy.

Rows are taught by the teacher where it is surer, the others by the student's own old answers.
"""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import Align, Select
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import note_again, note_mean, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import minimise

OWN, OTHER, SHARED, STEPS, TINY = slice(150), slice(150, 250), slice(250, 850), 300, 5
FRESH, RATE = slice(850, None), 1e-3
WAYS = ("all rows", "by labels", "by confidence")


@final
class ComplementaryTransferStudy(Study):
    """A student and three teachers, used on all rows or only where the teacher is surer."""

    name = "complementary-transfer"
    title = "can a net learn from one that is no better?"
    paper = "roth2024fantastic"
    fidelity = "small nets on digits; rows to learn from are none that a student or teacher had"
    data = "digits: 150 for the student, 100 others for a teacher, 600 to transfer, 947 to judge"
    claims = (
        Claim("knows", "Every teacher is right on rows where the student is wrong.",
              "share of fresh rows, least of three teachers, less 0.01"),
        Claim("naive", "To follow the linear teacher, a weaker one, in 300 steps on 600 rows "
              "costs accuracy.",
              "accuracy of the student before less after",
              arms=("linear, all rows", "before")),
        Claim("labels", "Rows that are parted by the labels let the student gain in 300 steps on "
              "600 rows.",
              "accuracy after less before, mean of three teachers",
              arms=("by labels", "before")),
        Claim("confidence", "Rows that are parted by confidence, without labels, let the student "
              "gain in 300 steps on 600 rows.",
              "accuracy after less before, mean of three teachers",
              arms=("by confidence", "before")),
        Claim("parted", "Parting by confidence is better than following on all rows.",
              "accuracy, by confidence less all rows, mean of three teachers",
              arms=("by confidence", "all rows")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot, which teacher and student learn too, are not told of "
                 "other rows.", "accuracy by labels, linear teacher, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a student and its teachers, and distil in each way."""
        x, label = shuffled_digits(seed)
        tick("student and teachers")
        with part("before"):
            student = learned(mlp(64), x[OWN], label[OWN], seed).module
        teachers = {
            "another start": learned(mlp(64), x[OWN], label[OWN], seed + 1_000).module,
            "other rows": learned(mlp(64), x[OTHER], label[OTHER], seed).module,
            "linear": learned(nn.Linear(64, 10), x[OWN], label[OWN], seed).module,
        }
        right = {name: _right(net, x, label) for name, net in teachers.items()}
        was, steps = _right(student, x, label), TINY if tiny else STEPS
        found = dict[str, dict[str, float]]()
        for name, teacher in teachers.items():
            tick(name)
            after = dict[str, Tensor]()
            for way in WAYS:
                note_again(f"{name}, {way}", "before")
                with part(f"{name}, {way}"):
                    after[way] = _taught(student, teacher, x, label, way, seed, steps)
            found[name] = {
                **{way: float(v.mean()) for way, v in after.items()},
                "teacher": float(right[name].mean()),
                "knows more": float((right[name] * (1 - was)).mean()),
            }
        for way in WAYS:
            note_mean(way, [f"{name}, {way}" for name in teachers])
        tick("labels by lot")
        lots, before = by_lot(x, seed, steps), float(was.mean())
        mean = {k: sum(row[k] for row in found.values()) / len(found) for k in found["linear"]}
        return {
            "knows": min(row["knows more"] for row in found.values()) - 0.01,
            "naive": before - found["linear"]["all rows"],
            "labels": mean["by labels"] - before,
            "confidence": mean["by confidence"] - before,
            "parted": mean["by confidence"] - mean["all rows"],
            "lots": lots,
            "accuracy of the student | before": before,
            "accuracy of the student | labels of the 600": _with_labels(
                student, x, label, seed, steps
            ),
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy after a transfer by labels that are drawn by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    student = learned(mlp(64), x[OWN], lots[OWN], seed).module
    teacher = learned(nn.Linear(64, 10), x[OWN], lots[OWN], seed).module
    return float(_taught(student, teacher, x, lots, "by labels", seed, steps).mean()) - 0.1


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """Return 1 for each test row that a net classifies correctly, else 0."""
    return (net(x[FRESH]).argmax(1) == label[FRESH]).double()


def _taught(
    student: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    label: Tensor,
    way: str,
    seed: int,
    steps: int,
) -> Tensor:
    """Return the test rows that a student classifies correctly after distillation."""
    net, rows, align = deepcopy(student), x[SHARED], Align("kl")
    with torch.no_grad():
        wanted, old = teacher(rows), student(rows)
        if way != "all rows":
            sure, own = (logits.softmax(1) for logits in (wanted, old))
            truth = label[SHARED, None]
            pair = [
                p.gather(1, truth)[:, 0] if way == "by labels" else p.amax(1) for p in (sure, own)
            ]
            weight = Select("partition")(*pair)
            assert isinstance(weight, Tensor)
            wanted = torch.where(weight[:, None] > 0, wanted, old)

    def loss(some: Tensor) -> Tensor:
        return align(net(rows[some]), wanted[some])

    minimise(loss, net.parameters(), len(rows), steps=steps, seed=seed, rate=RATE)
    return _right(net, x, label)


def _with_labels(student: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a student trained on the labels of the shared rows."""
    net, rows, truth = deepcopy(student), x[SHARED], label[SHARED]

    def loss(some: Tensor) -> Tensor:
        return cross_entropy(net(rows[some]), truth[some])

    minimise(loss, net.parameters(), len(rows), steps=steps, seed=seed, rate=RATE)
    return float(_right(net, x, label).mean())
