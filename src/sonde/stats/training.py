"""Training by minibatches, shared by all methods that learn in steps.

A ``Trainer`` walks over the rows several times. The first walk surveys them (their scale, a sample,
counts), the following ones train, and a last one may review what came out. Everything that it knows
stands in its state, so a run that was stopped goes on with the same bits; randomness comes from a
seed and the number of the step. What a solver fits in closed form does not belong here.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.finite import all_finite
from sonde.core.state import State, map_tensors
from sonde.core.statistic import Learner, parameter_names
from sonde.stats.training_weights import LiveWeights, Tally, Weights

SURVEY, TRAIN, REVIEW, DONE = range(4)


@dataclass(frozen=True, kw_only=True)
class TrainingState(State):
    """State of training between rows; subclasses add the first pass's results.

    ``losses`` are those of the current walk or, after training, of the last training walk.
    ``diverged`` is the step that led to numbers that are not finite; the weights are those before
    the call that made this step.
    """

    weights: Weights
    walks: int = 0
    stage: int = SURVEY
    losses: tuple[Tally, ...] = ()
    waiting: tuple[Tensor, ...] = ()
    diverged: int | None = None
    held: Tally = field(default_factory=Tally)
    best: Weights | None = None
    best_loss: float = math.inf
    waited: int = 0

    def require_trained(self, owner: str) -> None:
        """Raise if a training run diverged, or was run by hand and not finished.

        Raises
        ------
        StateError
            With the step, or the number of walks.
        """
        if self.diverged is not None:
            raise StateError(
                f"{owner}: the training diverged at step {self.diverged}. Use a smaller rate, "
                "or check the rows for very large values."
            )
        if self.stage != DONE:
            raise StateError(
                f"{owner}: expected a trained net, got a net after {self.walks} epochs and "
                f"{self.weights.steps} steps. Fit it with fit or sonde.fit: with update "
                "alone, the net sees each row only once, which is not enough."
            )


@dataclass(frozen=True)
class Examples:
    """Source of minibatches: tensors of equal length, and the held-out entries.

    Parameters
    ----------
    columns : tuple of Tensor
        Tensors whose first axis runs over the examples; all have the same length.
    held : Bool[Tensor, "row"]
        Examples that are held out from training.
    """

    columns: tuple[Tensor, ...]
    held: Bool[Tensor, "example"] | None = None


TrainingT = TypeVar("TrainingT", bound=TrainingState)


class Trainer(Learner[TrainingT]):
    """Base class of methods trained by minibatches; subclasses are final frozen dataclasses.

    A subclass says what its first walk learns (``survey``), what it trains on (``examples``) and
    the loss of a minibatch; ``step`` is one of Adam. Its weights may belong to a module (by
    ``torch.func.functional_call``) or to formulas.

    Attributes
    ----------
    passes : int
        Walks that train.
    batch : int
        Examples in a step. Where fewer come together, and nothing waits, a step has fewer.
    rate : float
        Step size.
    seed : int
        Of order and all else that is random.
    patience : int
        Walks without a smaller loss on held-out examples after which the best weights are kept and
        training stops; 0: it never does.
    buffer : int
        Examples that are collected across calls and mixed before training; 0: only those of one
        call.
    reviews : bool
        Whether one more walk follows, with the weights as they came out.
    """

    passes: int
    batch: int
    rate: float
    seed: int
    patience: int = 0
    buffer: int = 0
    reviews: ClassVar[bool] = False

    @abstractmethod
    def survey(self, state: TrainingT, *columns: Any, **_: Any) -> TrainingT:
        """Return the state after rows of the first pass."""

    @abstractmethod
    def examples(
        self, state: TrainingT, *columns: Any, **_: Any
    ) -> tuple[TrainingT, Examples | None]:
        """Return the state and training examples of the rows; parameters name the columns."""

    @abstractmethod
    def loss(
        self, state: TrainingT, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Float[Tensor, ""], tuple[Tensor, ...]] | None:
        """Return a minibatch's loss, and row losses to sum; None to skip the step.

        It may change ``live.buffers`` in place.
        """

    def step(self, state: TrainingT, live: LiveWeights, gradients: Sequence[Tensor]) -> None:
        """Update the weights by these gradients."""
        live.adam(gradients, self.rate)

    def times(self, state: TrainingT) -> int:
        """Return how often a pass repeats its examples; once with a buffer."""
        return 1

    def held_loss(
        self, state: TrainingT, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> Float[Tensor, ""]:
        """Return the mean loss of held-out examples, used for early stopping."""
        loss = self.loss(state, live, *batch)
        return torch.tensor(math.nan) if loss is None else loss[0]

    def review(self, state: TrainingT, *columns: Any, **_: Any) -> TrainingT:
        """Return the state after rows of the last pass."""
        return state

    def needs(self) -> tuple[str, ...]:
        """Return the columns that ``examples`` takes after the state."""
        return parameter_names(type(self).examples)[1:]

    def n_passes(self) -> int:
        """Return the number of passes: a survey, the training passes, and any review."""
        return 1 + self.passes + self.reviews

    def is_trained(self, state: TrainingT) -> bool:
        """Return whether no pass is left."""
        return state.stage == DONE

    def update(self, state: TrainingT, *columns: Any, **_: Any) -> TrainingT:
        """Use these rows to survey, train or review."""
        if state.stage == SURVEY:
            return self.survey(state, *columns)
        state = map_tensors(state, lambda t: t.to(columns[0].device))
        if state.stage == REVIEW:
            return self.review(state, *columns)
        if state.stage == DONE or state.diverged is not None:
            return state
        state, examples = self.examples(state, *columns)
        if examples is None:
            return state
        kept, held = examples.columns, examples.held
        state = self._trained(state, kept if held is None else tuple(c[~held] for c in kept))
        return state if held is None else self._judged(state, tuple(c[held] for c in kept))

    def _trained(
        self, state: TrainingT, columns: tuple[Tensor, ...], is_last: bool = False
    ) -> TrainingT:
        """Return the state after steps on these examples and the waiting ones."""
        if self.buffer and state.waiting:
            columns = tuple(map(torch.cat, zip(state.waiting, columns, strict=True)))
        n = len(columns[0])
        if n == 0:
            return state
        if self.buffer and not is_last and n < max(self.buffer, self.batch):
            return replace(state, waiting=columns)
        source = generator("order", self.seed, state.weights.steps)
        times = 1 if self.buffer else self.times(state)
        order = [p for _ in range(times) for p in self._parts(n, source, is_last)]
        parts = [p.to(columns[0].device) for p in order]
        rest = parts.pop() if self.buffer else None
        trained = self._stepped(state, columns, parts)
        if rest is not None:
            trained = replace(trained, waiting=tuple(c[rest] for c in columns))
        return trained

    def _parts(self, n: int, source: torch.Generator, is_last: bool) -> Iterator[Tensor]:
        """Yield random parts of the example indices; with a buffer, the last part keeps waiting."""
        if not self.buffer:
            yield from minibatches(n, self.batch, source)
            return
        order = torch.randperm(n, generator=source)
        wait = 0 if is_last else n - self.batch * max(1, (n - self.buffer // 2) // self.batch)
        free = order[: n - wait]
        yield from free.tensor_split(max(1, len(free) // self.batch)) if len(free) else ()
        yield order[n - wait :]

    def _stepped(
        self, state: TrainingT, columns: tuple[Tensor, ...], parts: Sequence[Tensor]
    ) -> TrainingT:
        live, losses = state.weights.live(), state.losses
        for rows in parts:
            with torch.enable_grad():
                loss = self.loss(state, live, *(c[rows] for c in columns))
                if loss is None:
                    continue
                gradients = torch.autograd.grad(loss[0], live.values, materialize_grads=True)
            self.step(state, live, gradients)
            is_good = all(all_finite([v.detach() for v in live.values]))
            if not (is_good and math.isfinite(float(loss[0].detach()))):
                return replace(state, diverged=live.steps)
            live.steps += 1
            losses = losses or tuple(Tally() for _ in loss[1])
            sums = ((float(part.detach().sum()), part.numel()) for part in loss[1])
            losses = tuple(t.plus(*s) for t, s in zip(losses, sums, strict=True))
        return replace(state, weights=live.kept(), losses=losses)

    def _judged(self, state: TrainingT, columns: tuple[Tensor, ...]) -> TrainingT:
        """Add the loss of held-out examples."""
        n = len(columns[0])
        if n == 0 or state.diverged is not None:
            return state
        with torch.no_grad():
            loss = float(self.held_loss(state, state.weights.live(), *columns))
        return replace(state, held=state.held.plus(loss * n, n))

    def close_pass(self, state: TrainingT) -> TrainingT:
        """Train on the waiting examples; with ``patience``, keep the best weights."""
        if state.stage == TRAIN and state.waiting and len(state.waiting[0]):
            empty = tuple(c[:0] for c in state.waiting)
            state = replace(self._trained(state, empty, is_last=True), waiting=())
        if state.stage == TRAIN and self.patience:
            better = state.held.average < state.best_loss
            state = replace(
                state,
                held=Tally(),
                best=state.weights if better else state.best,
                best_loss=min(state.held.average, state.best_loss),
                waited=0 if better else state.waited + 1,
            )
        state = replace(state, walks=state.walks + 1, stage=self._next_stage(state))
        return replace(state, losses=()) if state.stage == TRAIN else state

    def _next_stage(self, state: TrainingT) -> int:
        if state.stage == REVIEW:
            return DONE
        is_enough = state.walks >= self.passes or 0 < self.patience <= state.waited
        if state.stage == SURVEY or not (is_enough or state.diverged is not None):
            return TRAIN
        return REVIEW if self.reviews else DONE


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by integers and words."""
    text = "|".join(map(str, key)).encode()
    word = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(word >> 1)


def xavier(source: torch.Generator, n_out: int, n_in: int) -> Tensor:
    """Return a normal matrix of variance ``2 / (n_in + n_out)``."""
    scale = (2.0 / (n_in + n_out)) ** 0.5
    return scale * torch.randn(n_out, n_in, generator=source)


def minibatches(n: int, size: int, source: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers below ``n`` in random order, in parts of ``size`` up to twice that."""
    order = torch.randperm(n, generator=source)
    yield from order.tensor_split(max(1, n // size))
