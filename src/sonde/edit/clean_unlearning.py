"""A copy of a classifier that has unlearned clean images, which exposes a backdoor.

For looking at what is left: the original is untouched, and the copy is thrown away.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.edit._channels import accuracy_of, labelled
from sonde.weights import as_model
from sonde.weights.tuning import Trainee, each_batch, mean_loss, tuned

PATIENCE = 4
"""Steps between two looks at the accuracy."""


@final
@dataclass(frozen=True)
class CleanUnlearning:
    """Train a copy on clean images to unlearn them, until its accuracy falls below ``stop``.

    A backdoor does not depend on what clean images show, so it can stay: a corner patch on digits
    still turned 95 % of images when two in five clean images were misclassified.

    Range        the copy's accuracy on ``clean`` ends below ``stop``, or ``epochs`` are over.
    Cost         training on a few hundred images.
    Assumes      labels. The class that the copy wrongly names most often need not be the target.
    Differs      from the paper: teaches the uniform distribution (bounded) instead of raising the
                 loss, which also removes the trigger; norms in eval mode.

    Parameters
    ----------
    objective : {"uniform", "ascent"}, default="uniform"
        What the copy is taught; ``ascent`` is the paper's.
    rate : float, default=1e-3
        Learning rate of Adam.
    stop : float, default=0.6
        Clean accuracy below which training stops: later the trigger is unlearned too.
    epochs : int, default=100
        At most.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    li2024ebyd
    """

    objective: Literal["uniform", "ascent"] = "uniform"
    rate: float = 1e-3
    stop: float = 0.6
    epochs: int = 100
    seed: int = 0
    paper: ClassVar[str] = "li2024ebyd"

    def __post_init__(self) -> None:
        check_ranges(self, rate="> 0", epochs="> 0", objective=("uniform", "ascent"), stop="(0, 1)")

    def expose(self, model: Model | nn.Module, clean: Inputs, progress: bool = True) -> nn.Module:
        """Return a copy that has unlearned the clean examples. The model is not changed.

        Raises
        ------
        InputError
            If the examples have no labels.
        """
        labelled("CleanUnlearning", clean)
        return tuned(
            as_model(model),
            clean,
            _uniform if self.objective == "uniform" else _raised,
            rate=self.rate,
            epochs=self.epochs,
            seed=self.seed,
            label="unlearn clean examples",
            stop=_Stop(clean, self.stop),
            progress=progress,
        )


class _Stop:
    """Checks regularly whether the accuracy has fallen enough."""

    def __init__(self, clean: Inputs, least: float) -> None:
        self._clean, self._least, self._n = clean, least, 0

    @torch.no_grad()
    def __call__(self, trainee: Trainee) -> bool:
        self._n += 1
        if self._n % PATIENCE:
            return False
        return accuracy_of(trainee.losses, each_batch(self._clean)) < self._least


def _uniform(trainee: Trainee, batch: InputBatch) -> Tensor:
    """Return the cross-entropy to the uniform distribution."""
    return -trainee.losses.answers(batch).log_p.mean()


def _raised(trainee: Trainee, batch: InputBatch) -> Tensor:
    return -mean_loss(trainee, batch)
