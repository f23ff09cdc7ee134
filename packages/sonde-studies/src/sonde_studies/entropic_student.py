"""A classifier cut in two, whose first half sends few bits: against images and features."""

import io
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.compress import EntropyBottleneck, ScalarCodec
from sonde.train import Distil
from sonde_studies._garments import garments
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels, minimise

CHANNELS, BETAS, STEPS, SECOND, QUALITIES = 6, (0.0005, 0.005, 0.05), 220, 120, (5, 20, 60)


@final
class EntropicStudentStudy(Study):
    """Bits per image that a server needs to classify it, by three ways to send it."""

    name = "entropic-student"
    title = "does a learned bottleneck send fewer bits than a coded picture or plain features?"
    paper = "matsubara2022supervised"
    fidelity = "the two stages of the paper on small nets; a factorised distribution alone"
    data = "Fashion-MNIST of 16 x 16 if it is installed, else digits enlarged: 2,000 to learn from"
    claims = (
        Claim("jpeg", "At no lower accuracy it sends fewer bits than JPEG of the picture.",
              "logarithm of bits of the least JPEG over bits of the bottleneck"),
        Claim("features", "At no lower accuracy it sends fewer bits than features of 8 bits.",
              "logarithm of bits of features over bits of the bottleneck"),
        Claim("accuracy", "Its best accuracy is that of the whole net, to two points.",
              "accuracy of the student less that of the teacher, and 0.02"),
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
        teacher = drawn(_Teacher, seed)
        tick("teacher")
        learn_labels(teacher, x, label, steps=20 if tiny else STEPS, seed=seed)
        accuracy = _right(teacher(fresh), truth)
        found: dict[str, float] = {"accuracy | whole net": accuracy}
        points: list[tuple[float, float]] = []
        ratio = gained = 0.0
        for beta in BETAS:
            tick(f"price {beta:g}")
            student = _Student(teacher, seed)
            first, second = (8, 4) if tiny else (STEPS, SECOND)
            _first(student, teacher, x, beta, first, seed)
            before, _ = _sent(student, fresh, truth)
            _second(student, teacher, x, label, second, seed)
            after, bits = _sent(student, fresh, truth)
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


class _Teacher(nn.Module):
    """Two convolutions, then the rest, which a server would run."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()
        )
        self.late = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x)))


class _Student(nn.Module):
    """An encoder with few channels, a bottleneck, a decoder, and a copy of the teacher's rest."""

    def __init__(self, teacher: _Teacher, seed: int) -> None:
        super().__init__()
        made: Any = drawn(
            lambda: nn.ModuleList([
                nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(),
                              nn.Conv2d(12, CHANNELS, 3, 2, 1)),
                nn.Sequential(nn.Conv2d(CHANNELS, 24, 3, padding=1), nn.ReLU(),
                              nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()),
                _Teacher(),
            ]),
            seed,
        )  # fmt: skip
        self.encoder, self.decoder, self.rest = made
        self.rest.load_state_dict(teacher.state_dict())
        self.bottleneck = EntropyBottleneck(CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return early and late maps, logits, and the bits per image."""
        latent, bits = self.bottleneck(self.encoder(x))
        early = self.decoder(latent)
        late = self.rest.late(early)
        return early, late, self.rest.head(late), bits


def _first(
    student: _Student, teacher: _Teacher, x: Tensor, beta: float, steps: int, seed: int
) -> None:
    """Train on the teacher's maps, with a weight for bits."""
    with torch.no_grad():
        wanted = teacher.early(x)
        wanted2 = teacher.late(wanted)

    def loss(rows: Tensor) -> Tensor:
        early, late, _, bits = student(x[rows])
        gap = (
            mse_loss(early, wanted[rows]) / wanted.var()
            + mse_loss(late, wanted2[rows]) / wanted2.var()
        )
        return gap + beta * bits.mean()

    student.train()
    trained = [*student.encoder.parameters(), *student.decoder.parameters()]
    trained += list(student.bottleneck.parameters())
    minimise(loss, trained, len(x), steps=steps, seed=seed, rate=5e-3)
    student.eval()


def _second(
    student: _Student, teacher: _Teacher, x: Tensor, label: Tensor, steps: int, seed: int
) -> None:
    """Train on the answers, with encoder and distribution frozen."""
    with torch.no_grad():
        latent, _ = student.bottleneck(student.encoder(x))
        wanted = teacher(x)
    distil = Distil(temperature=2.0)

    def loss(rows: Tensor) -> Tensor:
        logits = student.rest.head(student.rest.late(student.decoder(latent[rows])))
        return distil(logits, wanted[rows], label[rows])

    trained = [*student.decoder.parameters(), *student.rest.parameters()]
    minimise(loss, trained, len(x), steps=steps, seed=seed)


@torch.no_grad()
def _sent(student: _Student, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return accuracy on decoded streams, and the bits per image without headers."""
    codec = student.bottleneck.codec()
    latent = student.encoder(x).movedim(1, -1)
    stream = codec.encode(latent)
    early = student.decoder(codec.decode(stream).movedim(-1, 1))
    logits = student.rest.head(student.rest.late(early))
    empty = len(codec.encode(latent[:0]))
    return _right(logits, truth), 8 * (len(stream) - empty) / len(x)


@torch.no_grad()
def _features(teacher: _Teacher, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return bits and accuracy with the teacher's own maps at eight bits."""
    early = teacher.early(x).movedim(1, -1)
    codec = ScalarCodec(8)
    stream = codec.encode(early)
    late = teacher.late(codec.decode(stream).movedim(-1, 1))
    return 8 * len(stream) / len(x), _right(teacher.head(late), truth)


@torch.no_grad()
def _jpeg(teacher: _Teacher, x: Tensor, truth: Tensor, quality: int) -> tuple[float, float]:
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
