"""Agreement between gradients of groups of rows, or of objectives, at a site.

For tasks that share a network, clients, domains, a task beside its auxiliary loss. Noise keeps even
groups of one direction from a cosine of 1: compare with ``null``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import ClassMoments, ClassMomentsState

_MOMENTS = ClassMoments("trace")


@final
@dataclass(frozen=True, kw_only=True)
class GradientConflictResult(Result):
    """Mean cosine between two groups' mean gradients.

    ``cosine`` holds that of each pair, ``congruity`` is ``|sum g|^2 / (sum |g|)^2``, ``agreement``
    the share of groups with the sign of the majority, for each unit. ``labels`` names the groups in
    the order of ``cosine``; ``itself`` is the expected cosine of two halves of each group, and
    ``null`` that of two whole groups whose gradients have one direction.
    """

    direction: Direction = "higher"
    cosine: Float[Tensor, "group group"]
    congruity: float
    agreement: Float[Tensor, "dim"]
    itself: Float[Tensor, "group"]
    labels: Int[Tensor, "group"]

    @property
    def attainable(self) -> float:
        """The expected cosine of two noisy groups with equal mean gradients.

        Noise multiplies the cosine of two means by the root of ``t / (t + v)`` of each group, with
        the squared length ``t`` of the true mean and the noise ``v`` of the measured mean. For
        halves, ``itself`` is ``t / (t + 2 v)``.
        """
        return float((2 * self.itself / (1 + self.itself)).clamp(min=0).prod().sqrt())


@final
@dataclass(frozen=True)
class GradientConflict(Instrument):
    """Mean cosine between the mean gradients of groups of rows at a site.

    ``(|sum_g u_g|^2 - G) / (G (G - 1))`` with the unit vectors ``u_g`` of the ``G`` groups' mean
    gradients. Groups are labels: of a task, a domain, a client. For several objectives feed the
    gradient of each as rows of its own label.

    Range        [-1, 1]; higher = groups agree; below 0 a step for one is a step against another.
                 The null is the mean cosine expected of groups whose gradients have one direction,
                 such as of labels that say nothing, with the noise of each group's mean.
    Cost         one pass and a backward for each batch; state 8 groups dim bytes.
    Assumes      two rows or more of each group, drawn independently.
    Differs      from the paper: one figure over all pairs; nothing is projected.

    Parameters
    ----------
    objective : str or None, default="nll"
        Name of the objective of the gradients, as ``sonde.read`` takes it; None takes any.

    Examples
    --------
    >>> g = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> found = gradient_conflict(g, torch.tensor([0, 0, 1, 1]))
    >>> found.value, round(found.congruity, 4)
    (0.0, 0.5556)

    References
    ----------
    yu2020pcgrad
    """

    objective: str | None = "nll"

    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "yu2020pcgrad"
    variants: ClassVar[dict[str, str]] = {"clients": "tian2024fedsgc", "stop": "wang2025haste"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"objective": None})

    def reading(self) -> dict[str, Any]:
        """Return the reading of the objective's gradient."""
        return {} if self.objective is None else {"objective": self.objective}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each group's gradient mean and standard deviation."""
        return {"groups": _GroupGradients()}

    def result(self, groups: ClassMomentsState) -> GradientConflictResult:
        """Compare the groups' mean gradients."""
        n = len(groups.labels)
        if n < 2:
            raise InputError(
                f"GradientConflict: expected rows of two groups or more, got {n}. Pass label=, the "
                "group of each row."
            )
        length = groups.mean.norm(dim=1)
        apart = length.detach().sum()
        dead = bool((length.detach() == 0).any())
        unit = groups.mean / length[:, None]
        total, joint = unit.sum(0).square().sum(), groups.mean.detach().sum(0)
        itself = _of_halves(groups)
        signs = groups.mean.detach().sign()
        most = torch.stack([(signs == s).double().mean(0) for s in (-1, 0, 1)])
        flags = {"dead": dead, "unlabelled": groups.unlabelled is not None}
        return GradientConflictResult(
            value=math.nan if dead else (total - n) / (n * (n - 1)),
            null=_of_one_direction(groups),
            n=groups.n_labelled,
            range=(-1.0, 1.0),
            flags=tuple(name for name, raised in flags.items() if raised),
            conventions={"null": "groups of one direction", "groups": n},
            cosine=(unit @ unit.T).detach(),
            congruity=math.nan if dead else float(joint.square().sum() / apart.square()),
            agreement=most.amax(0),
            itself=itself,
            labels=groups.labels,
        )


def _of_one_direction(groups: ClassMomentsState) -> float:
    """Return the mean cosine of group pairs that share a direction.

    With the squared length ``t`` of a group's true mean and the noise ``v`` across it, noise
    multiplies the group's cosines by the root of ``t / (t + v)``. A group whose measured mean is
    not twice as long as its noise takes the mean ``t`` of all groups.
    """
    weight, square = groups.weight.detach(), groups.mean.detach().square().sum(1)
    noise, dim = _noise(groups), groups.mean.shape[1]
    across = noise * (1 - 1 / dim)
    typical = ((weight * (square - noise)).sum() / weight.sum()).clamp(min=0)
    own = 1 - across / square
    factor = torch.where(square > 4 * noise, own, typical / (typical + across)).sqrt()
    n = len(factor)
    return float((factor.sum().square() - factor.square().sum()) / (n * (n - 1)))


def _noise(groups: ClassMomentsState) -> Float[Tensor, "group"]:
    """Return the squared noise of each group's mean."""
    weight = groups.weight.detach()
    return groups.within.detach() / (weight * (weight - 1))


def _of_halves(groups: ClassMomentsState) -> Float[Tensor, "group"]:
    """Return the expected cosine between mean gradients of two halves of each group.

    The squared length of a group's mean holds noise ``trace / (n (n - 1))``, that of a half twice
    as much.
    """
    weight, noise = groups.weight.detach(), _noise(groups)
    true = (groups.mean.detach().square().sum(1) - noise).clamp(min=0.0)
    return torch.where(weight > 1, true / (true + 2 * noise), math.nan)


@final
@dataclass(frozen=True)
class _GroupGradients(Statistic[ClassMomentsState]):
    """Mean and standard deviation of each group's gradient, independent of how rows are divided."""

    def observe(
        self, grad: Float[Tensor, "row dim"], label: Int[Tensor, "row"]
    ) -> ClassMomentsState:
        """Return the moments of a batch."""
        return _MOMENTS.observe(grad, label)

    def merge(self, a: ClassMomentsState, b: ClassMomentsState) -> ClassMomentsState:
        """Return the joined moments."""
        return _MOMENTS.merge(a, b)

    def influence(
        self,
        state: ClassMomentsState,
        gradient: ClassMomentsState,
        grad: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return each row's effect as part of its group."""
        return _MOMENTS.influence(state, gradient, grad, label)


def gradient_conflict(gradients: Any, label: Any, *, group: Any = None) -> GradientConflictResult:
    """Return how much the gradients of parts of the data agree; see ``GradientConflict``.

    Parameters
    ----------
    gradients : array (row, weight)
        Gradient of each example's loss with respect to the weights.
    label : ints (row,)
        Part of the data that each example belongs to; the gradients of these parts are compared.
    group : ints (row,), optional
        Rows that belong together, such as one person's; they count as one in the error.
    """
    return GradientConflict(None).fit(gradients, label, grad=gradients, group=group)
