"""Distilled data of a few synthetic images per digit: shrinking crops against real images."""

from typing import final

import numpy as np
import torch
from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde.compress import DistillDataset, batch_norm_moments
from sonde.train import Distil
from sonde_studies.arms import note, note_mean, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, minimise

TRAIN, STEPS, MADE, STUDENT, PER_CLASS, CROP = 1_200, 150, 120, 150, (1, 5, 20), 0.4
SHOWN = 200
"""Images that a student of labels by lot is shown."""


@final
class CurriculumCropsStudy(Study):
    """Students trained on 1, 5 or 20 images per digit, chosen or synthesised in five ways."""

    name = "curriculum-crops"
    title = "do crops that shrink make better data than crops of one range?"
    paper = "yin2024cda"
    fidelity = (
        "small convolutional nets; crops down to 0.4 of the area; soft labels of whole images"
    )
    data = "digits: 1,200 to distil, 597 to judge"
    claims = (
        Claim("curriculum", "Crops that shrink beat crops of the whole range from the start.",
              "difference of accuracy, mean over numbers of images",
              arms=("shrinking", "whole range")),
        Claim("random", "Made images, which take 120 steps to make, beat as many real ones by "
              "lot.",
              "difference of accuracy, mean over numbers of images",
              arms=("shrinking", "by lot")),
        Claim("centres", "They beat, after as many steps, the real images nearest to centres of "
              "clusters.",
              "difference of accuracy, mean over numbers of images",
              arms=("shrinking", "centres")),
        Claim("moments", "The moments of layers matter.",
              "accuracy with them less that without, mean over numbers of images",
              arms=("shrinking", "no moments")),
        Claim("one", "With one image of each digit, made images, which take 120 steps to make, "
              "beat one by lot.",
              "difference of accuracy",
              arms=("shrinking, 1", "by lot, 1")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot, which the teacher learns too, are not told of other "
                 "rows.", f"accuracy from {SHOWN} real images, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a teacher, synthesise and choose images, and train a student on each set."""
        x, label = digit_images(seed)
        fresh, truth = x[TRAIN:], label[TRAIN:]
        x, label = x[:TRAIN], label[:TRAIN]
        teacher = drawn(_net, seed)
        learn_labels(teacher, x, label, steps=20 if tiny else STEPS, seed=seed)
        moments = batch_norm_moments(teacher)
        made = DistillDataset(steps=5 if tiny else MADE, crop=CROP, seed=seed)
        found: dict[str, float] = {}
        for n in PER_CLASS[:1] if tiny else PER_CLASS:
            wanted = torch.arange(10).repeat_interleave(n)
            arms = {
                "shrinking": made,
                "whole range": DistillDataset(made.steps, crop=CROP, ramp=0.0, seed=seed),
                "no moments": DistillDataset(made.steps, crop=CROP, weight=0.0, seed=seed),
            }
            data = dict[str, Tensor]()
            for name, how in arms.items():
                with part(f"{name}, {n}"):
                    note(updates=how.steps)
                    data[name] = how.distil(teacher, moments, wanted, (1, 8, 8)).x
            data |= {
                "by lot": _by_lot(x, label, n, seed),
                "centres": _centres(x, label, n, seed),
            }
            for name, images in data.items():
                tick(f"{name}, {n}")
                student = drawn(_net, seed + 1)
                _taught(student, teacher, images, wanted, 10 if tiny else STUDENT, seed)
                found[f"accuracy of {name} | {n}"] = accuracy(student, fresh, truth)

        for name in ("shrinking", "whole range", "no moments", "by lot", "centres"):
            note_mean(name, [f"{name}, {n}" for n in (PER_CLASS[:1] if tiny else PER_CLASS)])

        def mean(name: str) -> float:
            return float(
                np.mean([v for k, v in found.items() if k.startswith(f"accuracy of {name} |")])
            )

        ours = mean("shrinking")
        tick("labels by lot")
        lots = by_lot(torch.cat([x, fresh]), seed, (20, 10) if tiny else (STEPS, STUDENT))
        return {
            "curriculum": ours - mean("whole range"),
            "random": ours - mean("by lot"),
            "centres": ours - mean("centres"),
            "moments": ours - mean("no moments"),
            "one": found["accuracy of shrinking | 1"] - found["accuracy of by lot | 1"],
            "lots": lots,
            **found,
        }


def by_lot(x: Tensor, seed: int, steps: tuple[int, int]) -> float:
    """Return the accuracy of a student of labels by lot, less that of chance."""
    lots, teacher, student = labels_by_lot(x, 10, seed), drawn(_net, seed), drawn(_net, seed + 1)
    learn_labels(teacher, x[:TRAIN], lots[:TRAIN], steps=steps[0], seed=seed)
    some = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))[:SHOWN]
    _taught(student, teacher, x[some], lots[some], steps[1], seed)
    return accuracy(student, x[TRAIN:], lots[TRAIN:]) - 0.1


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip


def _taught(
    student: nn.Module, teacher: nn.Module, x: Tensor, label: Tensor, steps: int, seed: int
) -> None:
    """Train a student on images with the teacher's soft labels."""
    with torch.no_grad():
        wanted = teacher(x)
    distil = Distil(temperature=2.0)

    def loss(_: Tensor) -> Tensor:
        return distil(student(x), wanted, label)

    student.train()
    minimise(loss, student.parameters(), len(x), steps=steps, seed=seed)
    student.eval()


def _by_lot(x: Tensor, label: Tensor, n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    return torch.cat([x[order[label[order] == c][:n]] for c in range(10)])


def _centres(x: Tensor, label: Tensor, n: int, seed: int) -> Tensor:
    """Return for each digit the real images nearest to the centres of n clusters."""
    found: list[Tensor] = []
    for c in range(10):
        mine = x[label == c]
        means = KMeans(n, n_init=2, random_state=seed).fit(mine.flatten(1).numpy())  # pyright: ignore
        centres = torch.from_numpy(np.asarray(means.cluster_centers_)).float()
        found.append(mine[torch.cdist(centres, mine.flatten(1)).argmin(1)])
    return torch.cat(found)
