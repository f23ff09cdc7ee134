"""A classifier cut in two, whose first half sends few bits: against images and features."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from sonde_studies._coded_pictures import pictures, right_on, sent_as_features, sent_as_jpeg
from sonde_studies._split_classifier import Student, Teacher, learn_classes, learn_maps
from sonde_studies.arms import note_again
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

BETAS, STEPS, SECOND, QUALITIES, PART = (0.0005, 0.005, 0.05), 220, 120, (5, 20, 60), 5
Points = list[tuple[float, float]]
"""Bits of an image and accuracy at each price, prices in ascending order."""


@final
class EntropicStudentStudy(Study):
    """Bits per image that a server needs to classify it, by three ways to send it.

    A fifth of the training images is held back and chooses the price of a bit; other images judge.
    ``accuracy`` and ``stage two`` take the price of the best accuracy, the one that a user would
    take: at the largest price few bits are left for the second stage to read. Against JPEG and
    features the largest price is taken whose accuracy on the images held back is no lower.
    """

    name = "entropic-student"
    title = "does a learned bottleneck send fewer bits than a coded picture or plain features?"
    paper = "matsubara2022supervised"
    fidelity = "the two stages of the paper on small nets; a factorised distribution alone"
    data = (
        "Fashion-MNIST of 16 x 16 if it is installed, else digits enlarged: 1,600 to learn from, "
        "400 to choose the price, 500 to judge"
    )
    place = "fashion"
    claims = (
        Claim("jpeg", "At a price chosen for no lower accuracy, or for its best, after 340 more "
              "steps and with a fifth more parameters a bottleneck sends fewer bits than a JPEG.",
              "logarithm of bits of the least JPEG over bits of the bottleneck",
              arms=("price as jpeg", "teacher")),
        Claim("features", "So it does, with as many steps and parameters more, against features "
              "of 8 bits.",
              "logarithm of bits of features over bits of the bottleneck",
              arms=("price as features", "teacher")),
        Claim("accuracy", "At the price that is best on images held back it has, after 340 more "
              "steps and with a fifth more parameters, the whole net's accuracy, to two points.",
              "accuracy less that of the teacher, and 0.02",
              arms=("best price", "teacher")),
        Claim("trade", "A larger price of bits sends fewer.",
              "logarithm of bits at the least price over bits at the largest",
              arms=("price 0.05", "price 0.0005")),
        Claim("stage two", "Training the rest on the coded latents, in 120 more steps on the "
              "decoder's parameters, raises accuracy.",
              "difference, at the price that is best on images held back",
              arms=("best price", "before stage two")),
    )  # fmt: skip
    null = Claim("by lot", "A net trained on labels by lot, as the teacher is, tells none of the "
                 "fresh pictures.", "accuracy less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher, then students at several bit weights, and encode their maps."""
        x, label, fresh, truth = pictures(seed, 300 if tiny else 2_000)
        n = len(x) - len(x) // PART
        x, held, label, known = x[:n], x[n:], label[:n], label[n:]
        teacher = drawn(Teacher, seed)
        tick("teacher")
        learn_labels(teacher, x, label, steps=20 if tiny else STEPS, seed=seed)
        accuracy = right_on(teacher(fresh), truth)
        kept, points, before = Points(), Points(), list[float]()
        stream = 0.0
        for beta in BETAS:
            tick(f"price {beta:g}")
            student = Student(teacher, seed)
            note_again(f"price {beta:g}", "teacher")
            first, second = (8, 4) if tiny else (STEPS, SECOND)
            learn_maps(student, teacher, x, beta, first, seed)
            note_again(f"before stage two, price {beta:g}", f"price {beta:g}")
            before.append(_sent(student, fresh, truth)[1])
            learn_classes(student, teacher, x, label, second, seed)
            kept.append(_sent(student, held, known))
            points.append(_sent(student, fresh, truth))
            if beta == BETAS[0]:
                with torch.no_grad():
                    _, each = student.bottleneck(student.encoder(fresh))
                stream = points[0][0] / float(each.mean())
        tick("jpeg, features, labels by lot")
        jpeg = {q: sent_as_jpeg(teacher, fresh, truth, q) for q in QUALITIES}
        features, right = sent_as_features(teacher, fresh, truth)
        best = _largest(kept, 1.0)
        as_jpeg = _largest(kept, sent_as_jpeg(teacher, held, known, QUALITIES[0])[1])
        as_features = _largest(kept, sent_as_features(teacher, held, known)[1])
        chosen = {"best price": best, "price as jpeg": as_jpeg, "price as features": as_features}
        for name, i in chosen.items():
            note_again(name, f"price {BETAS[i]:g}")
        note_again("before stage two", f"before stage two, price {BETAS[best]:g}")
        return {
            "jpeg": float(np.log(jpeg[QUALITIES[0]][0] / points[as_jpeg][0])),
            "features": float(np.log(features / points[as_features][0])),
            "accuracy": points[best][1] - accuracy + 0.02,
            "trade": float(np.log(points[0][0] / points[-1][0])),
            "stage two": points[best][1] - before[best],
            "by lot": by_lot(x, fresh, seed, 20 if tiny else STEPS),
            "accuracy | whole net": accuracy,
            **{f"accuracy | price {b:g}": r for b, (_, r) in zip(BETAS, points, strict=True)},
            **{f"accuracy before stage two | price {b:g}": r
               for b, r in zip(BETAS, before, strict=True)},
            **{f"bits | price {b:g}": bits for b, (bits, _) in zip(BETAS, points, strict=True)},
            "accuracy | price as jpeg": points[as_jpeg][1],
            "accuracy | price as features": points[as_features][1],
            "price, best on images held back": BETAS[best],
            "stream over estimate, less 1": stream - 1,
            **{f"bits | jpeg {q}": bits for q, (bits, _) in jpeg.items()},
            **{f"accuracy | jpeg {q}": r for q, (_, r) in jpeg.items()},
            "bits | features": features,
            "accuracy | features": right,
        }  # fmt: skip


def by_lot(x: Tensor, fresh: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a teacher of labels by lot on fresh pictures, less chance."""
    label, truth = (labels_by_lot(rows, 10, seed) for rows in (x, fresh))
    net = drawn(Teacher, seed)
    learn_labels(net, x, label, steps=steps, seed=seed)
    with torch.no_grad():
        return right_on(net(fresh), truth) - 0.1


def _largest(points: Points, accuracy: float) -> int:
    """Return the number of the largest price without loss of accuracy, or of the best if none."""
    wanted = min(accuracy, max(right for _, right in points))
    return max(i for i, (_, right) in enumerate(points) if right >= wanted)


def _sent(student: Student, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the bits of an image and the accuracy on the decoded stream."""
    logits, bits = student.received(x)
    return bits, right_on(logits, truth)
