"""The training loop for data in memory: one gradient step on a loss for each batch.

For trainings whose batches lie in memory and that start anew when they are cut short. A training
that resumes from a state file, or spans shards, is a ``sonde.stats.Trainer``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError

T = TypeVar("T")


class Descent:
    """Gradient descent of parameters on a loss, by Adam or another torch optimiser.

    Only ``parameters`` get a gradient: other tensors behind the loss, such as the weights of a
    user's model, keep theirs.

    Parameters
    ----------
    owner : str
        Method that trains, for errors.
    parameters : iterable of Tensor
        Leaves. Those that require no gradient stay as they are.
    rate : float
    optimiser : callable, default=torch.optim.Adam
        Makes an optimiser from parameters and ``lr``.
    """

    def __init__(
        self,
        owner: str,
        parameters: Iterable[Tensor],
        rate: float,
        optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        self.owner, self.rate = owner, rate
        self.parameters = [p for p in parameters if p.requires_grad]
        self.n_steps = 0
        self._optimiser = optimiser(self.parameters, lr=rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the number of steps, for ``load_state_dict``."""
        return {"optimiser": self._optimiser.state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another descent of equal parameters."""
        self._optimiser.load_state_dict(state["optimiser"])
        self.n_steps = state["n_steps"]

    def run(
        self,
        loss: Callable[[T], Float[Tensor, ""]],
        batches: Iterable[T],
        after: Callable[[T], bool | None] = lambda _: None,
    ) -> tuple[float, ...]:
        """Take a step on each batch, and return the loss of each step.

        Parameters
        ----------
        loss : callable
            Returns the scalar to minimise for a batch.
        batches : iterable
            Its length is the number of steps; ``range(n)`` where all steps see the same rows.
        after : callable, optional
            Takes each batch after its step, to project parameters or show progress. True stops.

        Raises
        ------
        InputError
            At the first loss that is not finite.
        """
        losses: list[float] = []
        for batch in batches:
            with torch.enable_grad():
                losses.append(self.step(loss(batch)))
            if after(batch):
                break
        return tuple(losses)

    def step(self, loss: Float[Tensor, ""]) -> float:
        """Take a step, and return the loss before it."""
        value = float(loss.detach())
        if not math.isfinite(value):
            cause = "Check the rows and the model for NaN and very large numbers."
            if self.n_steps:
                cause = f"Lower the rate (now {self.rate:g}), or check the rows of this step."
            raise InputError(
                f"{self.owner}: expected a finite loss, got {value} at step {self.n_steps}. {cause}"
            )
        self.move(torch.autograd.grad(loss, self.parameters, allow_unused=True))
        return value

    def move(self, slopes: Sequence[Tensor | None]) -> None:
        """Take a step with the given gradients, in the order of the parameters."""
        for parameter, slope in zip(self.parameters, slopes, strict=True):
            parameter.grad = slope
        self._optimiser.step()
        for parameter in self.parameters:
            parameter.grad = None
        self.n_steps += 1


@torch.enable_grad()
def minimise(
    loss: Callable[[], Float[Tensor, ""]],
    parameters: Sequence[Tensor],
    steps: int,
    tolerance_change: float = 1e-9,
) -> None:
    """Minimise a smooth loss over all rows, by L-BFGS.

    Parameters
    ----------
    loss : callable
    parameters : sequence of Tensor
        Leaves, changed in place.
    steps : int
        Most iterations.
    tolerance_change : float, default=1e-9
        Change of the loss or of a parameter below which it stops.
    """
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        tolerance_change=tolerance_change,
        line_search_fn="strong_wolfe",
    )

    def value() -> Tensor:
        total = loss()
        for parameter, slope in zip(
            parameters, torch.autograd.grad(total, parameters), strict=True
        ):
            parameter.grad = slope
        return total

    solver.step(value)  # pyright: ignore[reportArgumentType]


def shuffled(n: int, epochs: int, draw: torch.Generator) -> Iterator[int]:
    """Yield the numbers below ``n``, in a new random order in each epoch."""
    for _ in range(epochs):
        yield from torch.randperm(n, generator=draw).tolist()


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed torch's CPU generator, and restore its state at the end.

    Yields a second generator with the same seed, for draws of the method's own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
