"""One coded stream that two tasks read: the class of a picture, and its foreground.

A stream that was made for classes and is read by a second decoder, a stream of the second task's
own, and a stream that was made for both.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from sonde_studies._coded_pictures import pictures, right_on
from sonde_studies._split_classifier import CHANNELS, Images, Student, Teacher, learn_classes
from sonde_studies.arms import note_sum, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels, minimise

STEPS, SECOND, TINY, PRICE, INK = 220, 120, 6, 0.005, 0.2
FIT, JUDGED = 1_500, 500
STREAMS = {"for classes": (True, False), "for foreground": (False, True), "for both": (True, True)}
Masks = Float[Tensor, "image 1 16 16"]


@final
class SharedStreamStudy(Study):
    """Bits, accuracy of the class and overlap of the foreground, for three streams.

    The price of a bit is the middle one of the study of single streams; nothing else was chosen.
    """

    name = "shared-stream"
    title = "does one learned stream serve two tasks?"
    paper = "matsubara2022supervised"
    fidelity = "foreground in place of boxes and segments of photographs; nets of two convolutions"
    data = (
        "Fashion-MNIST of 16 x 16 if it is installed, else digits enlarged: 1,500 to learn from, "
        "500 to judge; foreground is what is brighter than a fifth"
    )
    place = "fashion"
    claims = (
        Claim("second task", "A decoder of the stream that was made for classes finds the "
              "foreground as well, to two points, as one whose own stream, with more parameters, "
              "was made for it.", "overlap of foreground, stream for classes less own, and 0.02",
              arms=("foreground of classes", "for foreground")),
        Claim("made for both", "A stream made for both, in fewer updates of fewer "
              "parameters, serves the second task better than the stream made for classes.",
              "overlap of foreground, stream for both less for classes",
              arms=("for both", "classes, then foreground")),
        Claim("as two", "The stream made for both serves both tasks as well, to two points, as two "
              "streams with two encoders, twice the updates and more parameters.",
              "mean of accuracy and overlap, one stream less two, and 0.02",
              arms=("for both", "two streams")),
        Claim("fewer bits", "It takes fewer bits than these two streams of more parameters, twice "
              "the updates.", "logarithm of bits of two streams over bits of one",
              arms=("for both", "two streams")),
    )  # fmt: skip
    null = Claim("stranger", "The stream of another picture tells nothing of the foreground.",
                 "correlation with the foreground, each less its mean picture")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher and three streams, and read each with the decoders of its tasks."""
        x, label, fresh, truth = pictures(seed, 300 if tiny else FIT)
        wanted, shown = foreground(x), foreground(fresh)
        first, second = (TINY, TINY) if tiny else (STEPS, SECOND)
        tick("teacher")
        teacher = drawn(Teacher, seed)
        learn_labels(teacher, x, label, steps=first, seed=seed)
        made, found = dict[str, Stream](), dict[str, dict[str, float]]()
        for name, (classes, masks) in STREAMS.items():
            tick(name)
            stream = Stream.drawn(teacher, seed)
            stream.learn(teacher, x, wanted, (classes, masks), first, seed)
            if classes:
                learn_classes(stream.student, teacher, x, label, second, seed)
            if masks:
                stream.learn_masks(x, wanted, second, seed)
            made[name], found[name] = stream, stream.judged(fresh, truth, shown)
        with part("foreground of classes"):
            tick("foreground of classes")
            made["for classes"].learn_masks(x, wanted, first + second, seed)
        found["for classes"] = made["for classes"].judged(fresh, truth, shown)
        note_sum("classes, then foreground", ["for classes", "foreground of classes"])
        note_sum("two streams", ["for classes", "for foreground"])
        one, own, both = (found[name] for name in STREAMS)
        two = one["accuracy"] + own["overlap"]
        return {
            "second task": one["overlap"] - own["overlap"] + 0.02,
            "made for both": both["overlap"] - one["overlap"],
            "as two": (both["accuracy"] + both["overlap"] - two) / 2 + 0.02,
            "fewer bits": float(np.log((one["bits"] + own["bits"]) / both["bits"])),
            "stranger": strangers(made["for both"], fresh, shown),
            "own picture": strangers(made["for both"], fresh, shown, range(1)),
            **{f"{what} | {name}": v for name, row in found.items() for what, v in row.items()},
        }


def foreground(x: Images) -> Masks:
    """Return 1 where pixels are brighter than a fifth."""
    return (x > INK).float()


@dataclass
class Stream:
    """A student whose first half sends latents, and a second decoder of them.

    Parameters
    ----------
    student : Student
    masks : nn.Module
        Finds the foreground in the latents.
    """

    student: Student
    masks: nn.Module

    @classmethod
    def drawn(cls, teacher: Teacher, seed: int) -> "Stream":
        """Return an untrained stream."""
        decoder = drawn(
            lambda: nn.Sequential(
                nn.Conv2d(CHANNELS, 24, 3, padding=1), nn.ReLU(),
                nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
                nn.Conv2d(24, 16, 3, padding=1), nn.PixelShuffle(4),
            ), seed,
        )  # fmt: skip
        return cls(Student(teacher, seed), decoder)

    def learn(
        self,
        teacher: Teacher,
        x: Images,
        wanted: Masks,
        tasks: tuple[bool, bool],
        steps: int,
        seed: int,
    ) -> None:
        """Train encoder, bottleneck and decoders on the tasks, at a price of bits.

        Parameters
        ----------
        teacher : Teacher
            Its maps are what the decoder of classes reproduces.
        x : Tensor
        wanted : Tensor
            Foreground of each picture.
        tasks : pair of bool
            Whether the stream is made for classes, and for foreground.
        steps, seed : int
        """
        student, (classes, masks) = self.student, tasks
        with torch.no_grad():
            early = teacher.early(x)
            late = teacher.late(early)

        def loss(rows: Tensor) -> Tensor:
            latent, bits = student.bottleneck(student.encoder(x[rows]))
            total = PRICE * bits.mean()
            if classes:
                maps = student.decoder(latent)
                total = total + mse_loss(maps, early[rows]) / early.var()
                total = total + mse_loss(student.rest.late(maps), late[rows]) / late.var()
            if masks:
                total = total + 2 * binary_cross_entropy_with_logits(
                    self.masks(latent), wanted[rows]
                )
            return total

        student.train()
        moved = [*student.encoder.parameters(), *student.bottleneck.parameters()]
        moved += [*student.decoder.parameters()] if classes else []
        moved += [*self.masks.parameters()] if masks else []
        minimise(loss, moved, len(x), steps=steps, seed=seed, rate=5e-3)
        student.eval()

    def learn_masks(self, x: Images, wanted: Masks, steps: int, seed: int) -> None:
        """Train the decoder of the foreground on coded latents, which stay as they are."""
        latent = self.sent(x)[0]

        def loss(rows: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(self.masks(latent[rows]), wanted[rows])

        minimise(loss, self.masks.parameters(), len(x), steps=steps, seed=seed)

    @torch.no_grad()
    def sent(self, x: Images) -> tuple[Tensor, float]:
        """Return the latents that are decoded from the stream, and its bits per picture."""
        codec, latent = self.student.bottleneck.codec(), self.student.encoder(x).movedim(1, -1)
        stream = codec.encode(latent)
        bits = 8 * (len(stream) - len(codec.encode(latent[:0]))) / len(x)
        return codec.decode(stream).movedim(-1, 1), bits

    @torch.no_grad()
    def judged(self, x: Images, truth: Tensor, wanted: Masks) -> dict[str, float]:
        """Return bits per picture, accuracy of classes and overlap of foregrounds."""
        latent, bits = self.sent(x)
        told = self.masks(latent) > 0
        both = (told & (wanted > 0)).sum((1, 2, 3))
        either = (told | (wanted > 0)).sum((1, 2, 3)).clamp(min=1)
        named = self.student.rest.named(self.student.decoder(latent))
        overlap = float((both / either).mean())
        return {"bits": bits, "accuracy": right_on(named, truth), "overlap": overlap}


@torch.no_grad()
def strangers(stream: Stream, x: Images, wanted: Masks, shifts: range = range(1, 9)) -> float:
    """Return the mean correlation of the told foreground with those of other pictures.

    The mean picture is taken from both.

    Parameters
    ----------
    stream : Stream
    x, wanted : Tensor
    shifts : range, default=range(1, 9)
        How many pictures further on the others stand; 0 is the picture itself.
    """
    told = stream.masks(stream.sent(x)[0]).sigmoid()
    told, wanted = (one - one.mean(0) for one in (told, wanted))
    pairs = [torch.stack([told.flatten(), wanted.roll(i, 0).flatten()]) for i in shifts]
    return sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / len(pairs)
