"""A classifier cut in two, whose first half sends few bits: against images and features."""

import io
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sonde.compress import ScalarCodec
from sonde_studies._garments import garments
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._split_classifier import Student, Teacher, learn_classes, learn_maps
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

BETAS, STEPS, SECOND, QUALITIES = (0.0005, 0.005, 0.05), 220, 120, (5, 20, 60)


@final
class EntropicStudentStudy(Study):
    """Bits per image that a server needs to classify it, by three ways to send it."""

    name = "entropic-student"
    title = "does a learned bottleneck send fewer bits than a coded picture or plain features?"
    paper = "matsubara2022supervised"
    fidelity = "the two stages of the paper on small nets; a factorised distribution alone"
    data = "Fashion-MNIST of 16 x 16 if it is installed, else digits enlarged: 2,000 to learn from"
    claims = (
        Claim("jpeg", "At no lower accuracy, or at its best, it sends fewer bits than a JPEG.",
              "logarithm of bits of the least JPEG over bits of the bottleneck"),
        Claim("features", "So it does against features of 8 bits.",
              "logarithm of bits of features over bits of the bottleneck"),
        Claim("accuracy", "The best of three prices has the whole net's accuracy, to two points.",
              "largest accuracy of three students less that of the teacher, and 0.02"),
        Claim("trade", "A larger price of bits sends fewer.",
              "logarithm of bits at the least price over bits at the largest"),
        Claim("stage two", "Training the rest on the coded latents raises accuracy.",
              "difference, at the largest price"),
    )  # fmt: skip
    null = Claim("halves", "Two halves of the fresh pictures take the same bits.",
                 "bits of one over bits of the other, less 1, at the least price")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher, then students at several bit weights, and encode their maps."""
        x, label, fresh, truth = _pictures(seed, 300 if tiny else 2_000)
        teacher = drawn(Teacher, seed)
        tick("teacher")
        learn_labels(teacher, x, label, steps=20 if tiny else STEPS, seed=seed)
        accuracy = _right(teacher(fresh), truth)
        found: dict[str, float] = {"accuracy | whole net": accuracy}
        points: list[tuple[float, float]] = []
        ratio = gained = 0.0
        for beta in BETAS:
            tick(f"price {beta:g}")
            student = Student(teacher, seed)
            first, second = (8, 4) if tiny else (STEPS, SECOND)
            learn_maps(student, teacher, x, beta, first, seed)
            before = _right(student.received(fresh)[0], truth)
            learn_classes(student, teacher, x, label, second, seed)
            logits, bits = student.received(fresh)
            after = _right(logits, truth)
            points.append((bits, after))
            found |= {f"accuracy | price {beta:g}": after, f"bits | price {beta:g}": bits}
            if beta == BETAS[0]:
                with torch.no_grad():
                    _, each = student.bottleneck(student.encoder(fresh))
                ratio = float(each[::2].mean() / each[1::2].mean())
                found["stream over estimate, less 1"] = bits / float(each.mean()) - 1
            if beta == BETAS[-1]:
                gained = after - before
        best = max(right for _, right in points)
        jpeg = {q: _jpeg(teacher, fresh, truth, q) for q in QUALITIES}
        features, right = _features(teacher, fresh, truth)
        found |= {f"bits | jpeg {q}": bits for q, (bits, _) in jpeg.items()}
        found |= {f"accuracy | jpeg {q}": r for q, (_, r) in jpeg.items()}
        found |= {"bits | features": features, "accuracy | features": right}
        return {
            "jpeg": float(np.log(min(jpeg.values())[0] / _least(points, min(jpeg.values())[1]))),
            "features": float(np.log(features / _least(points, min(right, best)))),
            "accuracy": best - accuracy + 0.02,
            "trade": float(np.log(points[0][0] / points[-1][0])),
            "stage two": gained,
            "halves": ratio - 1,
            **found,
        }


def _least(points: list[tuple[float, float]], accuracy: float) -> float:
    """Return the fewest bits without loss of accuracy, or the bits of the best if none."""
    best = max(right for _, right in points)
    return min(bits for bits, right in points if right >= min(accuracy, best))


@torch.no_grad()
def _features(teacher: Teacher, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return bits and accuracy with the teacher's own maps at eight bits."""
    early = teacher.early(x).movedim(1, -1)
    codec = ScalarCodec(8)
    stream = codec.encode(early)
    logits = teacher.named(codec.decode(stream).movedim(-1, 1))
    return 8 * len(stream) / len(x), _right(logits, truth)


@torch.no_grad()
def _jpeg(teacher: Teacher, x: Tensor, truth: Tensor, quality: int) -> tuple[float, float]:
    """Return the JPEG bits above those of a blank image, and the accuracy after decoding."""
    n_bytes, back = 0, list[Tensor]()
    for picture in x[:, 0]:
        raw, values = _as_jpeg((255 * picture).numpy().astype(np.uint8), quality)
        n_bytes += raw
        back.append(values)
    flat, _ = _as_jpeg(np.zeros(x.shape[2:], np.uint8), quality)
    logits = teacher(torch.stack(back)[:, None])
    return 8 * (n_bytes / len(x) - flat + 1), _right(logits, truth)


def _as_jpeg(picture: np.ndarray, quality: int) -> tuple[int, Tensor]:
    out = io.BytesIO()
    Image.fromarray(picture, "L").save(out, "JPEG", quality=quality, optimize=True)
    with Image.open(out) as back:
        return len(out.getvalue()), torch.from_numpy(np.asarray(back) / 255.0).float()


def _right(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(1) == truth).double().mean())


def _pictures(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images (image, 1, 16, 16) with classes, and test images."""
    source = garments()
    if source is None:
        x, label = shuffled_digits(seed)
        x = x.reshape(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
        n = min(n, 1_200)
    else:
        order = torch.randperm(len(source.x), generator=torch.Generator().manual_seed(seed))
        x, label = source.x[order].reshape(-1, 1, 16, 16), torch.from_numpy(source.kind)[order]
    return x[:n], label[:n], x[n : n + 500], label[n : n + 500]
