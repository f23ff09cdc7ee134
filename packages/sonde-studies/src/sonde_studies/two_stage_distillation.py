"""Distillation from a masked autoencoder: generic states first, then the task."""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.train import Distil, GenericToSpecific, shared_mask
from sonde_studies._masked_autoencoder import (
    HIDDEN,
    PATCHES,
    SIDE,
    Classifier,
    MaskedAutoencoder,
    learn_pixels,
)
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise, squares_of

LARGE, SMALL, LABELLED, TRAIN = 48, 16, 200, 1_200
STEPS, TASK = 250, 150


@final
class TwoStageDistillationStudy(Study):
    """Students with a third of the width and few labels, taught in four ways."""

    name = "two-stage-distillation"
    title = "is a generic stage of distillation before the task worth its steps?"
    paper = "huang2023g2sd"
    fidelity = "small transformers on digits; the teacher's decoder is read after its first block"
    data = "digits in patches of 2 x 2: 1,200 without labels, 200 of them with, 597 to judge"
    claims = (
        Claim("two stages", "Both stages beat the task's stage alone at equal steps in all.",
              "difference of accuracy; the first stage reads six times the rows, and trains 1.6 "
              "times the parameters",
              arms=("both", "task alone")),
        Claim("pixels", "In the first stage, the teacher's states teach more than the pixels.",
              "difference of accuracy; the stage on pixels trains a fifth more parameters",
              arms=("both", "pixels")),
        Claim("all places", "To learn states at all places beats hidden places alone.",
              "difference of accuracy",
              arms=("both", "masked")),
        Claim("teacher", "In the second stage, the teacher's answers help.",
              "accuracy with them less that with labels alone",
              arms=("both", "labels")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot, which the teacher learns too, are not told of other "
                 "rows.", "accuracy, both stages, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher, then students in each way, and evaluate on test digits."""
        x, label = shuffled_digits(seed)
        patches = squares_of(x, SIDE)
        free, fresh, truth = patches[:TRAIN], patches[TRAIN:], label[TRAIN:]
        some, known = patches[:LABELLED], label[:LABELLED]
        steps, task = (6, 6) if tiny else (STEPS, TASK)
        tick("teacher")
        teacher = drawn(lambda: MaskedAutoencoder(LARGE, 3), seed)
        learn_pixels(teacher, free, 2 * steps, seed)
        fresh_teacher = deepcopy(teacher)
        answers = drawn(lambda: Classifier(teacher, LARGE), seed)
        _task(answers, some, known, None, task, seed)

        def student(arm: str, first: str, taught: bool = True) -> float:
            tick(arm)
            net = drawn(lambda: MaskedAutoencoder(SMALL, 2), seed)
            if first == "pixels":
                learn_pixels(net, free, steps, seed)
            elif first:
                _generic(net, teacher, free, first, steps, seed)
            new = drawn(lambda: Classifier(net, SMALL), seed)
            extra = 0 if first else steps
            _task(new, some, known, answers if taught else None, task + extra, seed)
            return accuracy(new, fresh, truth)

        found = {
            "both": student("both", "all"),
            "task": student("task alone", ""),
            "pixels": student("pixels", "pixels"),
            "masked": student("masked", "masked"),
            "labels": student("labels", "all", taught=False),
        }
        tick("labels by lot")
        lots = by_lot(fresh_teacher, patches, seed, (steps, task))
        return {
            "two stages": found["both"] - found["task"],
            "pixels": found["both"] - found["pixels"],
            "all places": found["both"] - found["masked"],
            "teacher": found["both"] - found["labels"],
            "lots": lots,
            **{f"accuracy | {name}": v for name, v in found.items()},
            "accuracy | teacher": accuracy(answers, fresh, truth),
        }


def by_lot(teacher: MaskedAutoencoder, patches: Tensor, seed: int, steps: tuple[int, int]) -> float:
    """Return a student's accuracy after both stages on labels by lot, less that of chance."""
    lots, some = labels_by_lot(patches, 10, seed), slice(LABELLED)
    answers = drawn(lambda: Classifier(teacher, LARGE), seed)
    _task(answers, patches[some], lots[some], None, steps[1], seed)
    net = drawn(lambda: MaskedAutoencoder(SMALL, 2), seed)
    _generic(net, teacher, patches[:TRAIN], "all", steps[0], seed)
    new = drawn(lambda: Classifier(net, SMALL), seed)
    _task(new, patches[some], lots[some], answers, steps[1], seed)
    return accuracy(new, patches[TRAIN:], lots[TRAIN:]) - 0.1


def _generic(
    net: MaskedAutoencoder, teacher: MaskedAutoencoder, x: Tensor, over: str, steps: int, seed: int
) -> None:
    """Train on the middle states of the teacher's decoder."""
    stage = drawn(lambda: GenericToSpecific(SMALL, LARGE, over), seed)  # pyright: ignore[reportArgumentType]

    def loss(rows: Tensor) -> Tensor:
        mask = shared_mask(len(rows), PATCHES, HIDDEN)
        with torch.no_grad():
            wanted = teacher.decoded(x[rows], mask)[0]
        return stage(net.decoded(x[rows], mask)[0], wanted, mask)

    trained = [*net.parameters(), *stage.parameters()]
    minimise(loss, trained, len(x), steps=steps, seed=seed, rate=2e-3)


def _task(
    net: Classifier, x: Tensor, label: Tensor, teacher: Classifier | None, steps: int, seed: int
) -> None:
    """Train on the classes, with a teacher's answers if there is a teacher."""
    distil = Distil(temperature=1.0)
    with torch.no_grad():
        wanted = None if teacher is None else teacher(x)

    def loss(rows: Tensor) -> Tensor:
        logits = net(x[rows])
        if wanted is None:
            return cross_entropy(logits, label[rows])
        return distil(logits, wanted[rows], label[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=2e-3)
