"""Distillation from a masked autoencoder: generic states first, then the task."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from sonde.train import Distil, GenericToSpecific, shared_mask
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, PATCH, LARGE, SMALL, LABELLED, TRAIN = 4, 4, 48, 16, 200, 1_200
STEPS, TASK, HIDDEN = 250, 150, 0.75


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
              "difference of accuracy"),
        Claim("pixels", "In the first stage, the teacher's states teach more than the pixels.",
              "difference of accuracy"),
        Claim("all places", "To learn states at all places beats hidden places alone.",
              "difference of accuracy"),
        Claim("teacher", "In the second stage, the teacher's answers help.",
              "accuracy with them less that with labels alone"),
    )  # fmt: skip
    null = Claim("again", "The same student from two seeds is as right.",
                 "difference of accuracy, both stages")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher, then students in each way, and evaluate on test digits."""
        x, label = shuffled_digits(seed)
        patches = _patches(x)
        free, fresh, truth = patches[:TRAIN], patches[TRAIN:], label[TRAIN:]
        some, known = patches[:LABELLED], label[:LABELLED]
        steps, task = (6, 6) if tiny else (STEPS, TASK)
        tick("teacher")
        teacher = drawn(lambda: _Autoencoder(LARGE, 3), seed)
        _pixels(teacher, free, 2 * steps, seed)
        answers = _classifier(teacher, LARGE, seed)
        _task(answers, some, known, None, task, seed)

        def student(first: str, own: int = seed, taught: bool = True) -> float:
            tick(first or "task alone")
            net = drawn(lambda: _Autoencoder(SMALL, 2), own)
            if first == "pixels":
                _pixels(net, free, steps, own)
            elif first:
                _generic(net, teacher, free, first, steps, own)
            new = _classifier(net, SMALL, own)
            extra = 0 if first else steps
            _task(new, some, known, answers if taught else None, task + extra, own)
            with torch.no_grad():
                return float((new(fresh).argmax(1) == truth).double().mean())

        found = {
            "both": student("all"),
            "task": student(""),
            "pixels": student("pixels"),
            "masked": student("masked"),
            "labels": student("all", taught=False),
            "again": student("all", seed + 100),
        }
        with torch.no_grad():
            whole = float((answers(fresh).argmax(1) == truth).double().mean())
        return {
            "two stages": found["both"] - found["task"],
            "pixels": found["both"] - found["pixels"],
            "all places": found["both"] - found["masked"],
            "teacher": found["both"] - found["labels"],
            "again": found["both"] - found["again"],
            **{f"accuracy | {name}": v for name, v in found.items() if name != "again"},
            "accuracy | teacher": whole,
        }


class _Autoencoder(nn.Module):
    """Encodes visible patches; a light decoder reconstructs all patches."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(PATCH, width), nn.Parameter(torch.randn(16, width) / 8)
        self.blocks = nn.ModuleList(_block(width) for _ in range(depth))
        self.hidden = nn.Parameter(torch.zeros(width))
        self.decoder = nn.ModuleList(_block(width) for _ in range(2))
        self.out = nn.Linear(width, PATCH)

    def encoded(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the states of all patches, or of the visible patches in order."""
        state = self.embed(x) + self.places
        if mask is not None:
            state = state[~mask].reshape(len(x), -1, state.shape[-1])
        for block in self.blocks:
            state = block(state)
        return state

    def decoded(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's middle states at all positions, and the reconstruction."""
        seen = self.encoded(x, mask)
        whole = self.hidden.expand(*mask.shape, -1).clone()
        whole[~mask] = seen.flatten(0, 1)
        middle = self.decoder[0](whole + self.places)
        return middle, self.out(self.decoder[1](middle))


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
    )


class _Classifier(nn.Module):
    def __init__(self, net: _Autoencoder, width: int) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net.encoded(x).mean(1))


def _classifier(net: _Autoencoder, width: int, seed: int) -> _Classifier:
    return drawn(lambda: _Classifier(net, width), seed)


def _pixels(net: _Autoencoder, x: Tensor, steps: int, seed: int) -> None:
    """Train to reconstruct hidden patches."""

    def loss(rows: Tensor) -> Tensor:
        mask = shared_mask(len(rows), 16, HIDDEN)
        return mse_loss(net.decoded(x[rows], mask)[1][mask], x[rows][mask])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=2e-3)


def _generic(
    net: _Autoencoder, teacher: _Autoencoder, x: Tensor, over: str, steps: int, seed: int
) -> None:
    """Train on the middle states of the teacher's decoder."""
    stage = drawn(lambda: GenericToSpecific(SMALL, LARGE, over), seed)  # pyright: ignore[reportArgumentType]

    def loss(rows: Tensor) -> Tensor:
        mask = shared_mask(len(rows), 16, HIDDEN)
        with torch.no_grad():
            wanted = teacher.decoded(x[rows], mask)[0]
        return stage(net.decoded(x[rows], mask)[0], wanted, mask)

    trained = [*net.parameters(), *stage.parameters()]
    minimise(loss, trained, len(x), steps=steps, seed=seed, rate=2e-3)


def _task(
    net: _Classifier, x: Tensor, label: Tensor, teacher: _Classifier | None, steps: int, seed: int
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


def _patches(x: Tensor) -> Tensor:
    """Return the patches of 2 x 2 of digits (digit, 16, 4)."""
    return x.reshape(-1, SIDE, 2, SIDE, 2).transpose(2, 3).reshape(-1, SIDE * SIDE, PATCH)
