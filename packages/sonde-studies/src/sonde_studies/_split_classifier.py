"""A classifier cut in two: the first half sends its maps in few bits, the second half names them.

The first half ends in an entropy bottleneck. It learns to reproduce the maps of a whole net, the
teacher, at a price of bits; then the second half learns the classes from the coded maps.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.compress import EntropyBottleneck
from sonde.train import Distil
from sonde_studies.worlds.learning import drawn, minimise

CHANNELS = 6
Images = Float[Tensor, "image 1 16 16"]


class Teacher(nn.Module):
    """Two convolutions, then the rest, which a server would run."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()
        )
        self.late = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 10))

    def named(self, early: Float[Tensor, "image 24 4 4"]) -> Float[Tensor, "image class"]:
        """Return the logits from the early maps."""
        return self.head(self.late(early))

    def forward(self, x: Images) -> Float[Tensor, "image class"]:
        """Return the logits of images."""
        return self.named(self.early(x))


class Student(nn.Module):
    """An encoder with few channels, a bottleneck, a decoder, and a copy of the teacher's rest."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        super().__init__()
        made: Any = drawn(
            lambda: nn.ModuleList([
                nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(),
                              nn.Conv2d(12, CHANNELS, 3, 2, 1)),
                nn.Sequential(nn.Conv2d(CHANNELS, 24, 3, padding=1), nn.ReLU(),
                              nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()),
                Teacher(),
            ]),
            seed,
        )  # fmt: skip
        self.encoder, self.decoder, self.rest = made
        self.rest.load_state_dict(teacher.state_dict())
        self.bottleneck = EntropyBottleneck(CHANNELS)

    def forward(self, x: Images) -> tuple[Tensor, Tensor, Float[Tensor, "image"]]:
        """Return early and late maps, and the estimated bits of each image."""
        latent, bits = self.bottleneck(self.encoder(x))
        early = self.decoder(latent)
        return early, self.rest.late(early), bits

    @torch.no_grad()
    def received(self, x: Images) -> tuple[Float[Tensor, "image class"], float]:
        """Return logits from the decoded stream, and its bits per image without the header."""
        codec = self.bottleneck.codec()
        latent = self.encoder(x).movedim(1, -1)
        stream = codec.encode(latent)
        header = len(codec.encode(latent[:0]))
        early = self.decoder(codec.decode(stream).movedim(-1, 1))
        return self.rest.named(early), 8 * (len(stream) - header) / len(x)


def learn_maps(
    student: Student, teacher: Teacher, x: Images, price: float, steps: int, seed: int
) -> None:
    """Train a student on the teacher's maps, at a price per bit (the first stage).

    The loss is the squared error of early and late maps, each in shares of their variance, plus
    ``price`` times the bits of an image.
    """
    with torch.no_grad():
        wanted = teacher.early(x)
        wanted2 = teacher.late(wanted)

    def loss(rows: Tensor) -> Tensor:
        early, late, bits = student(x[rows])
        gap = (
            mse_loss(early, wanted[rows]) / wanted.var()
            + mse_loss(late, wanted2[rows]) / wanted2.var()
        )
        return gap + price * bits.mean()

    student.train()
    trained = [*student.encoder.parameters(), *student.decoder.parameters()]
    trained += list(student.bottleneck.parameters())
    minimise(loss, trained, len(x), steps=steps, seed=seed, rate=5e-3)
    student.eval()


def learn_classes(
    student: Student,
    teacher: Teacher,
    x: Images,
    label: Int[Tensor, "image"],
    steps: int,
    seed: int,
) -> None:
    """Train decoder and rest on classes and the teacher's answers (the second stage).

    The encoder and the distribution of the bits stay as they are.
    """
    with torch.no_grad():
        latent, _ = student.bottleneck(student.encoder(x))
        wanted = teacher(x)
    distil = Distil(temperature=2.0)

    def loss(rows: Tensor) -> Tensor:
        return distil(student.rest.named(student.decoder(latent[rows])), wanted[rows], label[rows])

    trained = [*student.decoder.parameters(), *student.rest.parameters()]
    minimise(loss, trained, len(x), steps=steps, seed=seed)
