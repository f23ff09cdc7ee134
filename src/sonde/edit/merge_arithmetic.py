"""Merging by sums of task vectors: plain, with elected signs, or with random dropping."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.weights.merging import MergeRule, check_number, generator_for

WORDS, ROUNDING = 2**16, 1e-9


@final
@dataclass(frozen=True)
class TaskArithmetic(MergeRule):
    """Add what training changed in each model: ``base + weight sum (model - base)``.

    The differences to a common base, the task vectors, are added up as if the models had learned
    one after the other. It works if the models moved different weights, and fails if they pull the
    same weights apart.

    Range        tensors of the base's shape.
    Cost         one sum for each tensor; memory of the models' largest tensor.
    Assumes      models trained from one base.
    Differs      from the paper: nothing.

    Parameters
    ----------
    weight : float, default=0.3
        Factor of each task vector; the paper's authors choose 0.3 to 0.4 on held-out data.

    Examples
    --------
    >>> TaskArithmetic(0.5).merge("w", torch.zeros(2), [torch.ones(2), torch.tensor([1.0, 3.0])])
    tensor([1., 2.])

    References
    ----------
    ilharco2023editing
    """

    weight: float = 0.3

    paper: ClassVar[str] = "ilharco2023editing"

    def __post_init__(self) -> None:
        check_number("TaskArithmetic", "weight", self.weight)

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        total, task = torch.zeros_like(base), torch.empty_like(base)
        for other in others:
            total += torch.sub(other, base, out=task)
        return total.mul_(self.weight).add_(base)


@final
@dataclass(frozen=True)
class Ties(MergeRule):
    """Add task vectors without small entries, and without entries of the minority sign.

    Of each task vector only the largest entries are kept; for each entry the sign with more mass
    wins; the mean over the models that agree with this sign is added.

    Range        tensors of the base's shape.
    Cost         a selection and two sums for each tensor and model.
    Assumes      models trained from one base.
    Differs      from the paper: the largest entries are chosen in each tensor, not among all
                 weights, so that tensors can be merged one after the other; an entry whose masses
                 cancel exactly stays the base's.

    Parameters
    ----------
    density : float, default=0.2
        Share of the entries that are kept, in (0, 1].
    weight : float, default=1.0
        Factor of the merged task vector.

    Examples
    --------
    >>> tasks = [torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])]
    >>> Ties(density=1.0).merge("w", torch.zeros(2), tasks)
    tensor([2., 2.])

    References
    ----------
    yadav2023ties
    """

    density: float = 0.2
    weight: float = 1.0

    paper: ClassVar[str] = "yadav2023ties"

    def __post_init__(self) -> None:
        check_ranges(self, density="(0, 1]")
        check_number("Ties", "weight", self.weight)

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        tasks = [largest(other - base, self.density) for other in others]
        mass = torch.zeros_like(base)
        for task in tasks:
            mass += task
        elected = mass.sign_()
        total, n = torch.zeros_like(base), torch.zeros_like(base)
        for task in tasks:
            agrees = task.sign() * elected > 0
            total += task.mul_(agrees)
            n += agrees
        return base + self.weight * total / n.clamp_(min=1)


@renamed(remove="drop")
@final
@dataclass(frozen=True)
class Dare(MergeRule):
    """Drop most of each task vector at random, then rescale and merge the rest.

    What is left is ``1 / (1 - remove)`` times as large, so that the mean over draws is the whole
    task vector. Models that overlap in few entries disturb each other less.

    Range        tensors of the base's shape.
    Cost         a draw for each entry, and the rule that follows.
    Assumes      models trained from one base, with small differences to it.
    Differs      from the paper: nothing; the draws depend on seed, tensor name and model alone.

    Parameters
    ----------
    remove : float, default=0.9
        Fraction of the entries that is removed, in [0, 1), rounded to a multiple of 1/65,536.
    then : MergeRule, default=TaskArithmetic()
        The rule that merges the thinned models.
    seed : int, default=0
        Seed of the choice of removed entries.

    Examples
    --------
    >>> draws = [Dare(0.5, TaskArithmetic(1.0), seed).merge("w", torch.zeros(1), [torch.ones(1)])
    ...          for seed in range(200)]
    >>> sorted({float(x) for x in draws})
    [0.0, 2.0]

    References
    ----------
    yu2024language
    """

    remove: float = 0.9
    then: MergeRule = field(default_factory=TaskArithmetic)
    seed: int = 0

    paper: ClassVar[str] = "yu2024language"

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Run the check of the rule that merges the thinned task vectors."""
        self.then.check(shapes)

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        thinned, share = [], max(1, round((1.0 - self.remove) * WORDS))
        for i, other in enumerate(others):
            kept = _words(base.shape, generator_for(name, self.seed, i)) < share - WORDS // 2
            task = (other - base).mul_(kept.to(base.device)).mul_(WORDS / share)
            thinned.append(task.add_(base))
        return self.then.merge(name, base, thinned)


def _words(shape: torch.Size, generator: torch.Generator) -> Int[Tensor, "..."]:
    """Return uniform random 16-bit integers, four from each 64-bit draw."""
    n = shape.numel()
    draws = torch.empty((n + 3) // 4, dtype=torch.int64)
    return draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:n].reshape(shape)


def largest(task: Float[Tensor, "..."], density: float) -> Float[Tensor, "..."]:
    """Return a tensor with all entries but the largest set to zero.

    Of entries that tie at the border, evenly spaced ones stay, so that the share is kept exactly.
    """
    n_kept = max(1, int(density * task.numel() + ROUNDING))
    if n_kept >= task.numel():
        return task
    size = task.abs().flatten()
    border = size.kthvalue(task.numel() - n_kept + 1).values
    kept = size > border
    ties = (size == border).nonzero()[:, 0]
    n_more = n_kept - int(kept.sum())
    kept[ties[(torch.arange(n_more, device=ties.device) * len(ties)) // n_more]] = True
    return task * kept.reshape(task.shape)
