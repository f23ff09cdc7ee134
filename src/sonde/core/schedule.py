"""Schedules of a loss's weight over a training run."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

from sonde.core.ranges import check_ranges


class Schedule(ABC):
    """Weight of a loss at each step. Subclasses are final frozen dataclasses."""

    @abstractmethod
    def weight(self, step: int) -> float:
        """Return the weight at a step, counted from 0."""

    def is_over(self, step: int) -> bool:
        """Return whether the weight is 0 from this step on, so that the site need not be read."""
        return False


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """A constant weight.

    Parameters
    ----------
    value : float
        Weight at every step.
    """

    value: float

    def weight(self, step: int) -> float:
        """Return the weight."""
        return self.value

    def is_over(self, step: int) -> bool:
        """Return whether the weight is 0."""
        return self.value == 0.0


@final
@dataclass(frozen=True)
class Ramp(Schedule):
    """A weight that moves from ``start`` to ``end`` in ``steps`` steps and stays there.

    Parameters
    ----------
    start : float
        Weight before the first step.
    end : float
        Weight from step ``steps`` on.
    steps : int
        Number of steps of the change.
    shape : {"linear", "cosine"}, default="linear"
        Form of the change between start and end.

    Examples
    --------
    >>> [Ramp(1.0, 0.0, 4).weight(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1", shape=("linear", "cosine"))

    def weight(self, step: int) -> float:
        """Return the weight, interpolated from ``start`` to ``end``."""
        share = min(step / self.steps, 1.0)
        if self.shape == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        return self.start + share * (self.end - self.start)

    def is_over(self, step: int) -> bool:
        """Return whether the end is reached and the final weight is 0."""
        return self.end == 0.0 and step >= self.steps


@final
@dataclass(frozen=True)
class StopAt(Schedule):
    """A weight that becomes 0 at a step.

    Parameters
    ----------
    value : float
        Weight before the step.
    step : int
        First step without the loss.
    """

    value: float
    step: int

    def weight(self, step: int) -> float:
        """Return the weight, or 0 from the stop step on."""
        return self.value if step < self.step else 0.0

    def is_over(self, step: int) -> bool:
        """Return whether the stop step is reached."""
        return step >= self.step


@final
@dataclass(frozen=True)
class StopWhen(Schedule):
    """A weight that becomes 0 for good after a monitored value stayed below a threshold.

    Give it the figure by ``tell``, as often as it is measured: the cosine of the gradients of task
    and loss, say, which falls below 0 when the loss has done its part.

    Parameters
    ----------
    value : float
        Weight until the condition holds.
    threshold : float, default=0.0
        Bound that the monitored value must stay below.
    patience : int, default=1
        Number of successive figures below the threshold that end the loss.

    Examples
    --------
    >>> stop = StopWhen(0.5, patience=2)
    >>> for cosine in (-0.1, 0.2, -0.1, -0.3):
    ...     stop.tell(cosine)
    >>> stop.weight(100)
    0.0
    """

    value: float
    threshold: float = 0.0
    patience: int = 1
    _below: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_ranges(self, patience=">= 1")

    def tell(self, figure: float) -> None:
        """Record the next value; once the loss is over, it stays over."""
        if not self.is_over(0):
            self._below[0] = self._below[0] + 1 if figure < self.threshold else 0

    def weight(self, step: int) -> float:
        """Return the weight, or 0 after the loss is over."""
        return 0.0 if self.is_over(step) else self.value

    def is_over(self, step: int) -> bool:
        """Return whether the value stayed below the threshold for long enough."""
        return self._below[0] >= self.patience
