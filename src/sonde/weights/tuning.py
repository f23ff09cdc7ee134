"""Training of a model copy by batches: seeded, deterministic, with a progress bar.

The original stays as it is, so that an interrupted training leaves nothing behind. Copies are
trained in eval mode: nothing is dropped, and the statistics of norms stay those of the original.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent, seeded, shuffled
from sonde.tap import RowLosses, live_stream, place_of
from sonde.weights.change import Exchange
from sonde.weights.live import as_model, module_of
from sonde.weights.rewrite import RewritePlan

Objective = Callable[["Trainee", InputBatch], Tensor]


@dataclass(frozen=True)
class Trainee:
    """A module in training, with the function that computes its losses.

    Parameters
    ----------
    module : nn.Module
    losses : RowLosses
        Of the module: cross-entropy with the truth.
    draw : torch.Generator
        The only source of randomness.
    """

    module: nn.Module
    losses: RowLosses
    draw: torch.Generator


def row_losses(model: Model, module: nn.Module, inputs: Inputs) -> RowLosses:
    """Return the function that computes a module's cross-entropy on batches of inputs."""
    first = next(iter(inputs.batches(0, 1)), None)
    if first is None:
        raise InputError("expected at least one example that can be read, got none. Pass data.")
    logits = live_stream(model, inputs, logits_asked=True).logits_key
    return RowLosses(model, module, "label", logits, place_of(module, first))


def require_truth(owner: str, model: Model, **sides: Inputs | None) -> None:
    """Raise if examples have neither labels nor tokens to predict, so that the loss is 0.

    Raises
    ------
    InputError
        Naming the side of the data.
    """
    for name, inputs in sides.items():
        if inputs is None:
            continue
        losses = row_losses(model, with_copy(model.module), inputs)
        with torch.no_grad():
            is_known = any(bool(losses(batch).known.any()) for batch in each_batch(inputs))
        if not is_known:
            raise InputError(
                f"{owner}.plan: expected labels, or texts of two tokens or more, in {name!r}, "
                f'got {len(inputs)} examples without labels. Pass labels too: {{"{name}": (x, '
                "label)}."
            )


def with_copy(module: nn.Module) -> nn.Module:
    """Return a fully trainable copy in eval mode that shares nothing."""
    new = copy.deepcopy(module).eval()
    for p in new.parameters():
        p.requires_grad_(p.is_floating_point())
    return new


def tuned(
    model: Model | nn.Module,
    inputs: Inputs,
    objective: Objective,
    *,
    rate: float,
    epochs: int,
    seed: int,
    label: str,
    weight_decay: float = 0.0,
    stop: Callable[[Trainee], bool] | None = None,
    start: nn.Module | None = None,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of a model, trained with Adam.

    Parameters
    ----------
    model : Model or nn.Module
        Unchanged.
    inputs : Inputs
        Whose batches are walked in a random order in each epoch.
    objective : callable
        Returns the scalar to minimise from the trainee and a batch.
    rate : float
        Learning rate of Adam.
    epochs : int
        Number of passes over the data.
    seed : int
        Seed of the order of examples.
    weight_decay : float, default=0.0
        Weight decay of Adam.
    label : str
        For the progress bar.
    stop : callable, optional
        Asked after every step.
    start : nn.Module, optional
        Module to train, in its present mode; a copy of the model in eval mode by default.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    """
    live = as_model(model)
    module = with_copy(live.module) if start is None else start
    batches = list(inputs.batches(0, len(inputs)))
    adam = partial(torch.optim.Adam, weight_decay=weight_decay)
    descent = Descent(label, module.parameters(), rate, adam)
    with Bar(label, epochs * len(inputs), shown=progress) as bar, seeded(seed) as draw:
        trainee = Trainee(module, row_losses(live, module, inputs), draw)

        def after(batch: InputBatch) -> bool:
            bar.advance(len(batch))
            return stop is not None and stop(trainee)

        order = shuffled(len(batches), epochs, draw)
        descent.run(partial(objective, trainee), (batches[i] for i in order), after)
    return module.eval()


def mean_loss(trainee: Trainee, batch: InputBatch) -> Tensor:
    """Return the mean cross-entropy of the examples of a batch with a known answer.

    Parameters
    ----------
    trainee : Trainee
        Model in training.
    batch : InputBatch
        Batch of inputs with answers.
    """
    losses = trainee.losses(batch)
    return losses.losses.sum() / max(1, int(losses.known.sum()))


class Cycle:
    """Endless batches, in a new random order in each epoch."""

    def __init__(self, inputs: Inputs) -> None:
        self.batches = list(inputs.batches(0, len(inputs)))
        self._left: list[int] = []

    def next(self, draw: torch.Generator) -> InputBatch:
        """Return the next batch."""
        if not self._left:
            self._left = torch.randperm(len(self.batches), generator=draw).tolist()
        return self.batches[self._left.pop()]


def plan_of(model: Model | nn.Module, new: nn.Module, method: str, **figures: float) -> RewritePlan:
    """Return the plan that writes a trained copy's weights and buffers to a model."""
    before = module_of(model).state_dict()
    after: Mapping[str, Tensor] = new.state_dict()
    changes = {
        name: Exchange(value.detach().cpu())
        for name, value in after.items()
        if value.is_floating_point() and not torch.equal(value, before[name])
    }
    return RewritePlan.of(model, changes, method, **figures)


def each_batch(inputs: Inputs) -> Iterator[InputBatch]:
    """Yield the batches of data."""
    return inputs.batches(0, len(inputs))


def check_positive(owner: str, **values: float) -> None:
    """Raise if a parameter is not above zero.

    Raises
    ------
    InputError
        Naming the first that is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{owner}: expected {name} above 0, got {value}.")


def mean(values: Sequence[float]) -> float:
    """Return the mean of some numbers; NaN without numbers."""
    return sum(values) / len(values) if values else float("nan")
