"""Remove-and-retrain test of an attribution: accuracy of models trained without top positions.

A model that is only tested on masked inputs may fail because it never saw masked inputs; a model
that is trained on them fails because what tells the classes is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Judge
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.result import Result
from sonde.explain._judging import standard_error

Train = Callable[[Tensor, Tensor, int], nn.Module]
"""A recipe: inputs, classes and a seed to a trained model that returns logits."""
Fill = Literal["mean", "neighbours"]
ROUNDS = 100
"""Rounds of averaging over neighbours; known values stay unchanged."""


@final
@dataclass(frozen=True, eq=False)
class Ranked:
    """Inputs with their classes, and an attribution to their positions.

    Parameters
    ----------
    x : Float[Tensor, "row *axes"]
        Rows of numbers, or pictures (row, channel, height, width).
    label : Int[Tensor, "row"]
        Class of each input.
    scores : Float[Tensor, "row *place"]
        Attribution without the axis of channels, preferably of the predicted class, not the true
        one.
    """

    x: Float[Tensor, "row *axes"]
    label: Int[Tensor, "row"]
    scores: Float[Tensor, "row *place"]

    def __post_init__(self) -> None:
        shape = tuple(self.x.shape)
        places = (shape[0], *shape[2:]) if self.x.ndim == 4 else shape
        if tuple(self.scores.shape) != places or len(self.label) != len(self.x):
            raise ShapeError(
                f"Ranked: expected scores of {places} and {len(self.x)} labels for inputs of "
                f"{shape}, got {tuple(self.scores.shape)} and {len(self.label)}."
            )

    def top(self, share: float, seed: int, sign: int = 1) -> Bool[Tensor, "row *place"]:
        """Return the fraction of positions with the largest scores; ties are in a random order."""
        flat = sign * self.scores.flatten(1)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(flat.shape[1], generator=generator)
        order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
        count = round(share * flat.shape[1])
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
        return chosen.view_as(self.scores)


@final
@dataclass(frozen=True, kw_only=True)
class RoarResult(Result):
    """Accuracy of retrained models, for each removed fraction of positions and each seed.

    ``accuracy`` is without the places that the attribution ranks highest, ``random`` without as
    many random ones.
    """

    title: ClassVar[str] = "Accuracy after retraining without the positions"
    share: Float[Tensor, "share"]
    accuracy: Float[Tensor, "share seed"]
    random: Float[Tensor, "share seed"]

    def chart(self) -> Chart:
        """Return the accuracy by the fraction that is removed."""
        rows = [
            {"share": s, "accuracy": v, "order": order}
            for order, values in (("attribution", self.accuracy), ("random", self.random))
            for s, v in zip(self.share.tolist(), values.mean(1).tolist(), strict=True)
        ]
        return curves(self.title, rows, "share", "accuracy", by="order")


@final
@dataclass(frozen=True, kw_only=True)
class DiffRoarResult(Result):
    """Accuracy on the top positions minus accuracy on the bottom ones, also for masks alone.

    ``top`` and ``bottom`` are accuracies of models that saw only these places, for each seed;
    ``control`` is the difference of models that saw only which places were kept: the shape of a
    mask may tell the class.
    """

    title: ClassVar[str] = (
        "Accuracy on the positions ranked highest minus accuracy on those ranked lowest"
    )
    top: Float[Tensor, "seed"]
    bottom: Float[Tensor, "seed"]
    control: float

    @property
    def beyond_control(self) -> float:
        """Accuracy from the values at the positions, beyond the accuracy from the mask's shape."""
        return float(self.value) - self.control


@dataclass(frozen=True)
class Retraining(Judge):
    """Trains models on masked inputs.

    Parameters
    ----------
    n_seeds : int, default=5
        Trainings of each kind.
    fill : {"mean", "neighbours"}, default="mean"
        What stands at a place that is taken away: the mean over the inputs to train on, or, in
        pictures, the mean of its neighbours, which hides the shape of the mask.
    seed : int, default=0
    """

    n_seeds: int = 5
    fill: Fill = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, n_seeds=">= 1", fill=get_args(Fill))

    def _accuracy(
        self,
        train: Train,
        fit: Ranked,
        test: Ranked,
        gone: Callable[[Ranked, int], Bool[Tensor, "row *place"]],
        shown: Callable[[Tensor, Bool[Tensor, "row *place"]], Tensor] | None = None,
    ) -> Float[Tensor, "seed"]:
        """Return the accuracy of models trained and tested without some positions.

        ``shown`` turns inputs and the places that are gone into a model's inputs; by default the
        inputs with these places filled.
        """
        shown = shown or partial(self._masked, mean=fit.x.mean(0))
        accuracies: list[float] = []
        for seed in range(self.seed, self.seed + self.n_seeds):
            x, new = (shown(part.x, gone(part, seed)) for part in (fit, test))
            accuracies.append(_right(train(x, fit.label, seed), new, test.label))
        return torch.tensor(accuracies, dtype=torch.float64)

    def _masked(self, x: Tensor, gone: Bool[Tensor, "row *place"], mean: Tensor) -> Tensor:
        lost = gone.unsqueeze(1).expand_as(x) if x.ndim == 4 else gone
        if self.fill == "mean":
            return torch.where(lost, mean.expand_as(x), x)
        if x.ndim != 4:
            raise InputError(
                f"{type(self).__name__}: fill='neighbours' needs pictures (row, channel, h, w), "
                f"got {tuple(x.shape)}."
            )
        filled = torch.where(lost, mean.expand_as(x), x)
        for _ in range(ROUNDS):
            around = avg_pool2d(filled, 3, 1, 1, count_include_pad=False)
            filled = torch.where(lost, around, x)
        return filled


@renamed(remove="shares")
@final
@dataclass(frozen=True)
class Roar(Retraining):
    """Accuracy lost by removing the positions with the highest attribution and retraining.

    Range        [-1, 1]; mean over shares of the accuracy without random places less that without
                 the top ones; higher = better, 0 = no better than random.
    Cost         two trainings for each share and seed.
    Assumes      one recipe for all; redundant inputs hide what is lost.

    Parameters
    ----------
    n_seeds : int, default=5
        Number of trainings for each fraction of positions.
    fill : {"mean", "neighbours"}, default="mean"
        What stands at a place that is taken away: the mean over the inputs to train on, or, in
        pictures, the mean of its neighbours.
    seed : int, default=0
        Seed of the first training; the others follow.
    remove : tuple of float, default=(0.1, 0.3, 0.5, 0.7, 0.9)
        Fractions of the positions that are removed, each in (0, 1).

    References
    ----------
    hooker2019roar
    """

    remove: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    paper: ClassVar[str] = "hooker2019roar"

    def judge(self, train: Train, fit: Ranked, test: Ranked) -> RoarResult:
        """Return the accuracy lost by retraining without the top positions, beside random ones.

        Parameters
        ----------
        train : callable
            Inputs, classes and a seed -> a trained model.
        fit, test : Ranked
        """
        own, random = [], []
        for share in self.remove:

            def top(part: Ranked, seed: int, share: float = share) -> Tensor:
                return part.top(share, seed)

            def any_(part: Ranked, seed: int, share: float = share) -> Tensor:
                generator = torch.Generator().manual_seed(seed + len(part.x))
                drawn = torch.rand(part.scores.shape, generator=generator)
                return Ranked(part.x, part.label, drawn).top(share, seed)

            own.append(self._accuracy(train, fit, test, top))
            random.append(self._accuracy(train, fit, test, any_))
        accuracy, chance = torch.stack(own), torch.stack(random)
        lost = (chance - accuracy).mean(0)
        return RoarResult(
            value=float(lost.mean()),
            se=standard_error(lost),
            null=0.0,
            n=self.n_seeds,
            range=(-1.0, 1.0),
            direction="higher",
            conventions={"method": repr(self), "masking": self.fill, "null": "random places"},
            share=torch.tensor(self.remove, dtype=torch.float64),
            accuracy=accuracy,
            random=chance,
        )


@renamed(keep="share")
@final
@dataclass(frozen=True)
class DiffRoar(Retraining):
    """Accuracy of models that see only the top positions, minus that for the bottom positions.

    Range        [-1, 1]; above 0 = places that tell classes are ranked high, below 0 = low;
                 ``beyond_control`` leaves out what the shape of the mask tells.
    Cost         four trainings for each seed.
    Assumes      one recipe for all; scores for the predicted class, else masks carry the label.

    Parameters
    ----------
    n_seeds : int, default=5
        Number of trainings for each fraction of positions.
    fill : {"mean", "neighbours"}, default="mean"
        What stands at a place that is taken away: the mean over the inputs to train on, or, in
        pictures, the mean of its neighbours.
    seed : int, default=0
        Seed of the first training; the others follow.
    keep : float, default=0.25
        Fraction of the positions that stays, in (0, 0.5].

    References
    ----------
    shah2021diffroar
    """

    keep: float = 0.25
    paper: ClassVar[str] = "shah2021diffroar"

    def judge(self, train: Train, fit: Ranked, test: Ranked) -> DiffRoarResult:
        """Return how much more accurate models are on the top than on the bottom positions.

        Parameters
        ----------
        train : callable
            Inputs, classes and a seed -> a trained model.
        fit, test : Ranked
        """
        if not 0.0 < self.keep <= 0.5:
            raise InputError(f"DiffRoar: expected a fraction in (0, 0.5], got {self.keep}.")

        def but(sign: int) -> Callable[[Ranked, int], Tensor]:
            return lambda part, seed: ~part.top(self.keep, seed, sign)

        top, bottom = (self._accuracy(train, fit, test, but(sign)) for sign in (1, -1))
        shapes = [self._accuracy(train, fit, test, but(sign), _shape_of) for sign in (1, -1)]
        each = top - bottom
        return DiffRoarResult(
            value=float(each.mean()),
            se=standard_error(each),
            null=0.0,
            n=self.n_seeds,
            range=(-1.0, 1.0),
            direction="higher",
            conventions={"method": repr(self), "masking": self.fill},
            top=top,
            bottom=bottom,
            control=float((shapes[0] - shapes[1]).mean()),
        )


def _shape_of(x: Tensor, gone: Bool[Tensor, "row *place"]) -> Tensor:
    """Return 1 at kept positions and 0 at removed positions, in the shape of the inputs."""
    kept = (~gone).to(x)
    return kept.unsqueeze(1).expand_as(x).contiguous() if x.ndim == 4 else kept


def _right(model: nn.Module, x: Tensor, label: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == label).double().mean())
