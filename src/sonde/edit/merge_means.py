"""Merging by means of the models: weighted by Fisher, by inputs, or along a sphere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges
from sonde.stats import MomentsState, solve_normal_equations
from sonde.weights.merging import MergeRule, check_number

PARALLEL, OPPOSITE = 1e-9, 1e-6
"""Radians."""


@final
@dataclass(frozen=True, eq=False)
class FisherMerge(MergeRule):
    """Mean of the models, with each weight weighted by its Fisher information.

    ``sum F_i w_i / sum F_i`` with the diagonal of each model's Fisher information: the maximum of
    the product of normal posteriors around the models. If no model's loss depends on a weight, or a
    tensor has no Fisher information, the plain mean is taken.

    Range        tensors of the base's shape; the base itself does not count.
    Cost         two sums for each tensor, after the Fisher diagonals.
    Assumes      models trained from one base; diagonals over data of each model's own task.
    Differs      from the paper: nothing.

    Parameters
    ----------
    fishers : sequence of mapping of str to Float[Tensor, "..."]
        For each model the Fisher diagonal of each tensor, by its name in the file.

    Examples
    --------
    >>> one, other = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    >>> FisherMerge([one, other]).merge("w", torch.zeros(1), [torch.ones(1), torch.zeros(1)])
    tensor([0.7500])

    References
    ----------
    matena2022merging
    """

    fishers: Sequence[Mapping[str, Tensor]]

    paper: ClassVar[str] = "matena2022merging"

    def __post_init__(self) -> None:
        for i, fisher in enumerate(self.fishers):
            for name, x in fisher.items():
                if not bool((torch.isfinite(x) & (x >= 0)).all()):
                    raise InputError(
                        "FisherMerge: expected finite means of squares of at least 0, got other "
                        f"values in {name} of model {i}. Fit the Fisher diagonals again."
                    )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if a Fisher diagonal belongs to no merged tensor, or a model lacks it."""
        _check_names("FisherMerge", self.fishers, shapes, "")

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        _check_count("FisherMerge", "fishers", len(self.fishers), len(others))
        weights = [fisher.get(name) for fisher in self.fishers]
        if any(w is None for w in weights):
            return mean(others)
        total, norm = torch.zeros_like(base), torch.zeros_like(base)
        for other, fisher in zip(others, weights, strict=True):
            assert fisher is not None  # looked at above
            if fisher.shape != base.shape:
                raise ShapeError(
                    f"FisherMerge: expected a diagonal of shape {tuple(base.shape)} for {name}, "
                    f"got {tuple(fisher.shape)}. Fit it on this model."
                )
            weight = fisher.to(base)
            total += weight * other
            norm += weight
        weighted = total / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        return torch.where(norm > 0, weighted, mean(others))


@final
@dataclass(frozen=True, eq=False)
class RegMean(MergeRule):
    """The linear layer whose outputs are nearest to every model's outputs on its own inputs.

    ``W = (sum G_i)^-1 sum G_i W_i`` with ``G_i = X_i' X_i`` of the inputs that the layer has in
    model i: least squares on all models' answers at once. Tensors without inputs get the mean.

    Range        tensors of the base's shape; the base itself does not count.
    Cost         one solve of the layer's width; state: one second moment for each layer.
    Assumes      the moments of each layer's inputs, from data of each model's own task.
    Differs      from the paper: nothing.

    Parameters
    ----------
    moments : sequence of mapping of str to MomentsState
        For each model the moments of the inputs (``in``) of its layers, by the layer's name:
        ``Moments()`` fitted at ``*:in``.
    off_diagonal : float, default=0.9
        Factor of the off-diagonal entries of ``G_i``, in [0, 1].
    transposed : bool, default=False
        The weights are (in, out), as in GPT-2.

    Examples
    --------
    >>> from sonde.stats import Moments
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> g = {"0": Moments().observe(x)}
    >>> w = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])]
    >>> RegMean([g, g]).merge("0.weight", torch.zeros(1, 2), w)
    tensor([[2., 2.]])

    References
    ----------
    jin2023dataless
    """

    moments: Sequence[Mapping[str, MomentsState]]
    off_diagonal: float = 0.9
    transposed: bool = False

    paper: ClassVar[str] = "jin2023dataless"

    def __post_init__(self) -> None:
        check_ranges(self, off_diagonal="[0, 1]")
        for i, states in enumerate(self.moments):
            for name, state in states.items():
                if not all(bool(torch.isfinite(x).all()) for x in (state.mean, state.scatter)):
                    raise InputError(
                        f"RegMean: expected finite moments, got NaN or infinity for {name} of "
                        f"model {i}. Fit them on finite inputs."
                    )
                if state.scatter.ndim == 1:
                    raise InputError(
                        "RegMean: expected moments with all products of inputs, got only the "
                        f"diagonal for {name} of model {i}. Fit Moments(scatter='full') at its "
                        "input."
                    )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if moments belong to no merged layer, or a model lacks them."""
        _check_names("RegMean", self.moments, shapes, ".weight")

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        _check_count("RegMean", "moments", len(self.moments), len(others))
        layer = name.removesuffix(".weight")
        states = [model.get(layer) for model in self.moments]
        if layer == name or base.ndim != 2 or any(state is None for state in states):
            return mean(others)
        middle = mean(others)
        grams, answers = [], []
        for other, state in zip(others, states, strict=True):
            assert state is not None  # looked at above
            gram = state.n * state.second_moment.double().cpu()
            apart = (other - middle).double()
            apart = apart if self.transposed else apart.T
            if len(gram) != len(apart):
                raise ShapeError(
                    f"RegMean: expected inputs of {len(apart)} features for {name}, got "
                    f"{len(gram)}. Fit the moments at this layer's input; transposed=True is for "
                    "weights of shape (in, out)."
                )
            diagonal = gram.diagonal().diag()
            gram = self.off_diagonal * gram + (1.0 - self.off_diagonal) * diagonal
            grams.append(gram)
            answers.append(gram @ apart)
        # Solved around the mean: what no model has inputs for stays the mean.
        solution = solve_normal_equations(torch.stack(grams).sum(0), torch.stack(answers).sum(0))
        return middle + (solution if self.transposed else solution.T).to(base)


@final
@dataclass(frozen=True)
class Slerp(MergeRule):
    """The point between two models on the arc through their directions, tensor by tensor.

    ``sin((1 - t) a) / sin a  base + sin(t a) / sin a  other`` with ``a`` the angle between the two
    tensors. If the tensors are parallel, or one is zero, the straight line is taken; opposite
    tensors have no shortest arc and are refused for weights between 0 and 1.

    Range        tensors of the base's shape.
    Cost         three sums for each tensor.
    Assumes      two models of one shape.
    Differs      from common tools: the arc is taken however small the angle; they take the line
                 below 1.8 degrees.

    Parameters
    ----------
    weight : float, default=0.5
        0 is the base, 1 the other model.

    Examples
    --------
    >>> Slerp().merge("w", torch.tensor([1.0, 0.0]), [torch.tensor([0.0, 1.0])])
    tensor([0.7071, 0.7071])

    References
    ----------
    shoemake1985animating
    """

    weight: float = 0.5

    paper: ClassVar[str] = "shoemake1985animating"
    most: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        check_number("Slerp", "weight", self.weight)

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        other = others[0]
        if base.numel() == 1:  # numbers have no directions
            return torch.lerp(base, other, self.weight)
        one, two = base.double().flatten(), other.double().flatten()
        sizes = one.square().sum().sqrt() * two.square().sum().sqrt()
        if sizes == 0:
            return torch.lerp(base, other, self.weight)
        first, second = one / one.square().sum().sqrt(), two / two.square().sum().sqrt()
        # Half the chord keeps its digits where the cosine is nearly 1.
        angle = 2 * torch.asin(((first - second).square().sum().sqrt() / 2).clamp(max=1.0))
        if math.pi - float(angle) < OPPOSITE and 0 < self.weight < 1:
            raise InputError(
                "Slerp: expected tensors that are not opposite, got opposite tensors for "
                f"{name}, between which no shortest arc is unique. Keep the tensor of the base, "
                "or merge with TaskArithmetic."
            )
        if torch.sin(angle) < PARALLEL:
            return torch.lerp(base, other, self.weight)
        share = torch.sin((1 - self.weight) * angle), torch.sin(self.weight * angle)
        return ((share[0] * one + share[1] * two) / torch.sin(angle)).reshape(base.shape).to(base)


def mean(others: Sequence[Tensor]) -> Tensor:
    """Return the mean of some tensors."""
    total = torch.zeros_like(others[0])
    for other in others:
        total += other
    return total / len(others)


def _check_names(
    rule: str,
    found: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    suffix: str,
) -> None:
    """Raise if a fitted name belongs to no merged tensor, or is missing for a model."""
    every = {name for one in found for name in one}
    strange = sorted(name for name in every if name + suffix not in shapes)
    if strange or not every:
        got = repr(strange[0]) if strange else "none"
        raise InputError(
            f"{rule}: expected names of merged tensors, such as "
            f"{next(iter(shapes), '').removesuffix(suffix)!r}, got {got}. Use the tensor names "
            "of the file for the fitted moments, and leave out tensors that are kept."
        )
    for i, one in enumerate(found):
        missing = sorted(every - one.keys())
        if missing:
            raise InputError(
                f"{rule}: expected {missing[0]!r} of every model, got none of model {i}. Fit it "
                "for each model."
            )


def _check_count(rule: str, what: str, n: int, n_models: int) -> None:
    if n != n_models:
        raise InputError(f"{rule}: expected {what} of each of {n_models} models, got {n}.")
