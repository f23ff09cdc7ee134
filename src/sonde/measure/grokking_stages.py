"""Hidden units of a two-layer network while it memorises, and when it generalises.

For inputs with a finite table of rows, such as arithmetic modulo ``M``. On other networks look at
``sonde.measure.feature_complexity`` over checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural

Activation = Literal["square", "relu"]

LEARNED, GENERAL = 0.99, 0.5
STAGES = ("lazy", "independent", "interactive")


@final
@dataclass(frozen=True, kw_only=True)
class GrokkingStages(Result):
    """First step with most new rows correct, with the statistics of every checkpoint.

    ``stage`` is 0 (lazy: training rows are not yet right), 1 (independent: they are, fresh ones are
    not), 2 (interactive). ``moved`` is the change of the first layer's weights relative to its
    start; ``alignment`` the cosine between the negative gradient with respect to the hidden units
    and the labels' kernel applied to these units; ``energy`` the mean over units of how much of the
    labels a unit of length 1 explains; ``concentration`` the mean share of a unit's largest
    frequency; ``interaction`` the share of the squared covariances of units off the diagonal.
    """

    title: ClassVar[str] = "Measured quantities over the training run"
    direction: Direction = "lower"
    unit: str = "steps"
    step: Int[Tensor, "checkpoint"]
    stage: Int[Tensor, "checkpoint"]
    moved: Float[Tensor, "checkpoint"]
    train_accuracy: Float[Tensor, "checkpoint"]
    test_accuracy: Float[Tensor, "checkpoint"]
    alignment: Float[Tensor, "checkpoint"]
    energy: Float[Tensor, "checkpoint"]
    concentration: Float[Tensor, "checkpoint"]
    interaction: Float[Tensor, "checkpoint"]

    def chart(self) -> Chart:
        """Return a chart with a line for each statistic."""
        shares = ("alignment", "energy", "concentration", "interaction")
        names = ("train_accuracy", "test_accuracy", "moved", *shares)
        rows = [
            {"step": s, "figure": name, "value": v}
            for name in names
            for s, v in zip(self.step.tolist(), getattr(self, name).tolist(), strict=True)
        ]
        return curves(self.title, rows, "step", "value", by="figure")


def grokking_stages(
    weights: Mapping[int, tuple[Any, Any]],
    x: Any,
    label: Any,
    train: Any,
    *,
    activation: Activation = "square",
) -> GrokkingStages:
    """Return the stages of a two-layer network ``activation(x W) V`` from its checkpoints.

    A unit's energy is ``1/2 |Y' sigma(x w)|^2`` over all rows, with centred one-hot labels ``Y``
    and ``|w| = 1``: features that emerge are its local maxima. With addition modulo ``M``, squares
    and two one-hot summands, every wave of one frequency has the energy ``M / 4``.

    Range        a step; infinite where fresh rows never are right; lower = generalises sooner. The
                 boundaries of stages (training accuracy 0.99, then accuracy 0.5 on fresh rows) are
                 ours: look at what is watched beside them.
    Cost         O(checkpoints rows (dim units + units^2)).
    Assumes      squared loss on centred one-hot labels; for ``concentration`` blocks of as many
                 one-hot inputs as there are labels.
    Differs      from the paper: its stages are read off gradients, these off accuracies.

    Parameters
    ----------
    weights : mapping of int to (array (dim, unit), array (unit, class))
        First and second layer at each step; ``moved`` counts from the lowest step.
    x : array (row, dim)
        All rows.
    label : ints (row,)
        Class of each row, below the width of the second layer.
    train : array of bool (row,)
        Which rows are learned from; also as 0 and 1.
    activation : {"square", "relu"}, default="square"
        Activation of the hidden layer.

    Examples
    --------
    >>> m = 7
    >>> a, b = torch.cartesian_prod(torch.arange(m), torch.arange(m)).T
    >>> x = torch.cat([torch.eye(m)[a], torch.eye(m)[b]], 1)
    >>> wave = torch.cos(2 * torch.pi * torch.arange(m) / m).repeat(2)[:, None]
    >>> found = grokking_stages({0: (wave, torch.zeros(1, m))}, x, (a + b) % m, a >= 0)
    >>> round(float(found.energy[0]), 6), m / 4
    (1.75, 1.75)

    Raises
    ------
    InputError
        If rows or weights are not finite, labels are no classes of the network, or ``train`` is no
        mark for each row.

    References
    ----------
    tian2025grokking
    """
    rows = as_tensor("grokking_stages", x, "x", InputError).double()
    answer = as_tensor("grokking_stages", label, "label", InputError)
    if not bool((answer == answer.long()).all()):
        raise InputError("grokking_stages: expected whole numbers as label, got fractions.")
    answer = answer.long()
    learned = _marks(train)
    if not len(rows) == len(answer) == len(learned) or not bool(learned.any()):
        raise InputError(
            "grokking_stages: expected a label and a mark for each row, some of them for training, "
            f"got {plural(len(rows), 'row')}, {plural(len(answer), 'label')} and "
            f"{plural(int(learned.sum()), 'row')} to train on."
        )
    if not weights:
        raise InputError("grokking_stages: expected weights of at least one step, got none.")
    steps = sorted(weights)
    layers = [
        tuple(as_tensor("grokking_stages", w, "weights", InputError).double() for w in pair)
        for pair in (weights[s] for s in steps)
    ]
    n_classes = layers[0][1].shape[1]
    _check(rows, answer, layers, n_classes)
    goal = torch.nn.functional.one_hot(answer, n_classes).double()
    world = _World(rows, goal - goal.mean(0), answer, learned, activation)
    figures = torch.tensor(
        [world.watched(first, second, layers[0][0]) for first, second in layers],
        dtype=torch.float64,
    )
    step, trained, fresh = torch.tensor(steps), figures[:, 0], figures[:, 1]
    memorised = (trained >= LEARNED).cummax(0).values
    general = memorised & (fresh >= GENERAL)
    reached = torch.nonzero(general).flatten()
    never = math.nan if bool(learned.all()) else math.inf
    return GrokkingStages(
        value=float(step[reached[0]]) if len(reached) else never,
        n=len(step),
        range=(0.0, math.inf),
        flags=("dead",) if bool(learned.all()) and not len(reached) else (),
        conventions={
            "stages": f"{', '.join(STAGES)}: training accuracy {LEARNED}, then fresh {GENERAL}",
            "activation": activation,
            "se": "none: a single training run; take several seeds",
            "null": "none: train without weight decay",
        },
        step=step,
        stage=memorised.long() + general.cummax(0).values.long(),
        train_accuracy=trained,
        test_accuracy=fresh,
        moved=figures[:, 2],
        alignment=figures[:, 3],
        energy=figures[:, 4],
        concentration=figures[:, 5],
        interaction=figures[:, 6],
    )


def _marks(train: Any) -> Bool[Tensor, "row"]:
    marks = as_tensor("grokking_stages", train, "train", InputError)
    if not bool(((marks == 0) | (marks == 1)).all()):
        raise InputError(
            "grokking_stages: expected train as a mark for each row, true or false, got other "
            "numbers. Turn indices of rows into marks."
        )
    return marks.bool()


def _check(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    layers: Sequence[tuple[Tensor, ...]],
    n_classes: int,
) -> None:
    """Raise for non-finite entries, and for labels that are not classes."""
    if not bool(torch.isfinite(x).all()):
        raise InputError("grokking_stages: expected finite rows, got NaN or infinity in x.")
    if not all(bool(torch.isfinite(w).all()) for pair in layers for w in pair):
        raise InputError(
            "grokking_stages: expected finite weights, got NaN or infinity: the training run "
            "diverged. Leave out the steps from there on."
        )
    if int(label.min()) < 0 or int(label.max()) >= n_classes:
        raise InputError(
            f"grokking_stages: expected labels from 0 to {n_classes - 1}, the width of the second "
            f"layer, got {int(label.min())} to {int(label.max())}. Number the classes."
        )


@dataclass(frozen=True)
class _World:
    """All rows, their centred one-hot labels and classes, and the training rows."""

    x: Float[Tensor, "row dim"]
    goal: Float[Tensor, "row class"]
    label: Int[Tensor, "row"]
    learned: Tensor
    activation: Activation

    def watched(
        self,
        first: Float[Tensor, "dim unit"],
        second: Float[Tensor, "unit class"],
        start: Float[Tensor, "dim unit"],
    ) -> list[float]:
        """Return both accuracies and the other statistics of one checkpoint."""
        hidden = self._hidden(self.x @ first)
        logits = hidden @ second
        right = (logits.argmax(1) == self.label).double()
        residual = (self.goal - logits)[self.learned]
        pull = residual @ second.T
        goal, units = self.goal[self.learned], hidden[self.learned]
        pull_of_labels = goal @ (goal.T @ units)
        size = first.norm(dim=0)
        unit = first / torch.where(size > 0, size, math.inf)
        energy = 0.5 * (self.goal.T @ self._hidden(self.x @ unit)).square().sum(0)
        gram = hidden - hidden.mean(0)
        gram = gram.T @ gram
        return [
            float(right[self.learned].mean()),
            float(right[~self.learned].mean()),
            float((first - start).norm() / start.norm()),
            float((pull * pull_of_labels).sum() / (pull.norm() * pull_of_labels.norm())),
            float(energy[size > 0].mean()),
            self._concentration(first[:, size > 0]),
            float(1.0 - gram.diagonal().square().sum() / gram.square().sum()),
        ]

    def _hidden(self, before: Tensor) -> Tensor:
        return before.square() if self.activation == "square" else before.relu()

    def _concentration(self, first: Float[Tensor, "dim unit"]) -> float:
        """Return the mean energy fraction of units' largest frequency; NaN without blocks."""
        m = self.goal.shape[1]
        if len(first) % m or not first.numel():
            return math.nan
        power = torch.fft.rfft(first.reshape(-1, m, first.shape[1]), dim=1)[:, 1:].abs().square()
        of_unit = power.sum(0)
        return float((of_unit.amax(0) / of_unit.sum(0)).mean())
