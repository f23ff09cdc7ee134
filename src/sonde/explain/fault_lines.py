"""The fewest concepts to add or remove until the model gives another answer.

For concepts that are directions at a site: class means, dictionary features, probes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.explain.objective import Objective
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import SiteFunction

ROUNDS = 8
Changes = Float[Tensor, "row concept"]


@final
@dataclass(frozen=True, kw_only=True)
class FaultLinesResult(Result):
    """``value`` is the number of changed concepts that flips each row's answer; inf if none does.

    ``change`` holds how much of each concept is added (above 0) or taken away; ``predicted`` and
    ``other`` the two answers; ``flips`` whether a forward with the change gives the other one.
    """

    change: Changes
    predicted: Int[Tensor, "row"]
    other: Int[Tensor, "row"]
    flips: Bool[Tensor, "row"]

    def added(self, row: int) -> list[int]:
        """Return the concepts that are added to a row."""
        return torch.nonzero(self.change[row] > 0).flatten().tolist()

    def removed(self, row: int) -> list[int]:
        """Return the concepts that are taken away from a row."""
        return torch.nonzero(self.change[row] < 0).flatten().tolist()


@final
@dataclass(frozen=True)
class FaultLines(Explainer):
    """Fewest additions and removals of concepts after which the model gives the other answer.

    Minimises ``strength / 2 max(0, max_c logit_c - logit_a + margin)^2 + beta |d|_1 + |d|^2 / 2``
    over coefficients ``d`` within bounds by accelerated proximal steps, with a strength that grows
    until the answer flips. Then it tries to leave out one concept after another, the weakest first:
    a concept stays out if the others still flip the answer.

    Range        [1, concepts], or infinite; fewer = the two answers lie closer.
    Cost         at most ``8 steps + concepts steps / 4`` forwards and backwards of the rest of the
                 model.
    Assumes      directions of about one length; sites whose last axis, or channels, are features.
    Differs      from the paper: the hinge is squared, so that the steps have a size; bounds are
                 given, not taken from clusters.

    Parameters
    ----------
    steps : int, default=200
        Number of proximal steps in all.
    beta : float, default=0.1
        Price of a concept.
    margin : float, default=0.1
        By how much the other answer must win.
    bound : float, default=3.0
        Largest change of one concept, where no bounds are given.

    Examples
    --------
    >>> head = nn.Linear(3, 2, bias=False)
    >>> head.weight.data = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    >>> found = FaultLines().explain(head, torch.ones(1, 3), concepts=torch.eye(3), other=1)
    >>> found.value.tolist(), found.removed(0)
    ([1.0], [0])

    References
    ----------
    akula2022cxtom
    """

    steps: int = 200
    beta: float = 0.1
    margin: float = 0.1
    bound: float = 3.0
    paper: ClassVar[str] = "akula2022cxtom"

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1", beta=">= 0", margin=">= 0", bound="> 0")

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        concepts: Float[Tensor, "concept dim"],
        other: int | Sequence[int] | Tensor | None = None,
        site: Pattern = "input",
        bounds: tuple[Changes, Changes] | None = None,
    ) -> FaultLinesResult:
        """Return the changed concepts of each row.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Tensor, tuple, dict or InputBatch
        concepts : Float[Tensor, "concept dim"]
            Directions at the site; added at every place.
        other : int or ints (row,), optional
            The answer that should win; by default the second likeliest.
        site : pattern, default="input"
        bounds : pair of Float[Tensor, "row concept"], optional
            Least and largest change of each concept.

        Raises
        ------
        ShapeError
            If the concepts do not fit the site.
        InputError
            If the other answer is the model's own, or the answer does not depend on the site.
        """
        at = SiteFunction(model, inputs, site)
        axis, n = at.feature_axis, len(at.value)
        if concepts.ndim != 2 or concepts.shape[1] != at.value.shape[axis]:
            raise ShapeError(
                f"FaultLines: expected concepts of width {at.value.shape[axis]} at {at.site}, got "
                f"{tuple(concepts.shape)}."
            )
        fixed = Objective("margin", other=other).at(at)
        predicted = fixed.target
        rivals = predicted if fixed.other is None else fixed.other.to(predicted)
        if bool((rivals == predicted).any()):
            raise InputError(
                "FaultLines: expected a class other than the model's answer, got the model's "
                f"own answer for row {int((rivals == predicted).nonzero()[0])}. Name another "
                "class."
            )

        def behind(outputs: Any) -> Float[Tensor, "row"]:
            """Return the margin between the best remaining answer and the other answer."""
            log_p = fixed.log_probs(outputs)
            index = rivals[:, None].to(log_p.device)
            return log_p.scatter(1, index, -torch.inf).amax(1) - log_p.gather(1, index)[:, 0]

        directions = concepts.to(at.value)

        def margin(change: Changes) -> tuple[Float[Tensor, "row"], Changes]:
            """Return the margin of the other answer, and its gradient."""
            moved = _moved(at.value, change @ directions, axis)
            gap, slope, is_reached = at.gradient(moved, behind)
            if not is_reached:
                raise InputError(
                    f"FaultLines: the answer does not depend on {at.site}. Name another site."
                )
            flat = slope.movedim(axis, -1).reshape(n, -1, slope.shape[axis]).sum(1)
            return gap.to(change), flat.to(change) @ directions.T

        low, high = bounds or (
            torch.full((n, len(concepts)), -self.bound),
            torch.full((n, len(concepts)), self.bound),
        )
        limits = (low.to(directions), high.to(directions))
        change = self._pruned(margin, self._solved(margin, limits, self.steps), limits)
        flips = margin(change)[0] < 0
        count = (change != 0).sum(1).double()
        return FaultLinesResult(
            value=torch.where(flips, count, torch.inf),
            n=n,
            range=(1.0, float(len(concepts))),
            unit="concepts",
            direction="lower",
            conventions={
                "site": at.site,
                "beta": self.beta,
                "se": "none: a single answer for each row",
            },
            change=change,
            predicted=predicted,
            other=rivals,
            flips=flips,
        )

    def _solved(
        self,
        margin: Callable[[Changes], tuple[Float[Tensor, "row"], Changes]],
        limits: tuple[Changes, Changes],
        steps: int,
    ) -> Changes:
        """Return changes that flip the answer, if the bounds allow it."""
        low, high = limits
        best, strength = torch.zeros_like(low), torch.ones_like(low[:, :1])
        for _ in range(ROUNDS):
            change, ahead, momentum = best, best, 1.0
            for _ in range(max(1, steps // ROUNDS)):
                gap, slope = margin(ahead)
                over = (gap + self.margin).clamp(min=0.0)[:, None]
                size = 1.0 / (1.0 + strength * slope.square().sum(1, keepdim=True))
                step = ahead - size * (ahead + strength * over * slope)
                shrunk = step.sign() * (step.abs() - size * self.beta).clamp(min=0.0)
                new = torch.minimum(torch.maximum(shrunk, low), high)
                momentum, old = (1 + (1 + 4 * momentum**2) ** 0.5) / 2, momentum
                ahead = new + (old - 1) / momentum * (new - change)
                change = new
            is_flipped = margin(change)[0] < 0
            best = change
            if bool(is_flipped.all()):
                break
            strength = torch.where(is_flipped[:, None], strength, strength * 10)
        gap, slope = margin(best)
        farthest = torch.where(slope < 0, high, low)
        reaches = (gap >= 0) & (margin(farthest)[0] < 0)
        return torch.where(reaches[:, None], farthest, best)

    def _pruned(
        self,
        margin: Callable[[Changes], tuple[Float[Tensor, "row"], Changes]],
        change: Changes,
        limits: tuple[Changes, Changes],
    ) -> Changes:
        """Return the changes without unnecessary concepts, removing the weakest concepts first."""
        low, high = limits
        tried = change == 0
        for _ in range(change.shape[1]):
            if bool(tried.all()):
                break
            _, slope = margin(change)
            reach = torch.maximum((slope * low).abs(), (slope * high).abs())
            weakest = reach.masked_fill(tried, torch.inf).argmin(1, keepdim=True)
            without = (change != 0).scatter(1, weakest, False)
            kept = (low * without, high * without)
            fewer = self._solved(margin, kept, max(ROUNDS, self.steps // 4))
            is_enough = (margin(fewer)[0] < 0)[:, None] & ~tried.all(1, keepdim=True)
            change = torch.where(is_enough, fewer, change)
            tried = tried.scatter(1, weakest, True) | (change == 0)
        return change


def _moved(value: Tensor, step: Float[Tensor, "row dim"], axis: int) -> Tensor:
    shape = [1] * value.ndim
    shape[0], shape[axis] = step.shape
    return value + step.reshape(shape)
