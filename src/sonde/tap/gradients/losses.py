"""The loss of each example of a batch, and the inputs of a single example."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, near
from sonde.core.hashing import base_hashes, draws
from sonde.core.inputs import InputBatch, Model
from sonde.tap.hooks.outputs import leaves, replaced
from sonde.tap.model.placement import Place
from sonde.tap.streams.answers import Answers, answers_in

Loss = str | Callable[[Any, InputBatch], Tensor]
NAMES = ("label", "sampled")

OF_ALL_ROWS = ("grid", "token_axes")
"""Fields of a batch that are the same for each of its rows."""


def check_loss(loss: Loss) -> None:
    """Raise if a loss is neither a known name nor callable."""
    if not callable(loss) and loss not in NAMES:
        raise InputError(
            f"loss: expected {', '.join(NAMES)} or a callable (outputs, batch) -> a loss for each "
            f"example, got {loss!r}.{near(str(loss), NAMES)}"
        )


@dataclass(frozen=True)
class RowLosses:
    """Definition of the loss of each example.

    Parameters
    ----------
    model : Model
        Model whose losses are defined.
    module : nn.Module
        What is run: the model's own module or a copy.
    loss : {"label", "sampled"} or callable
        Cross-entropy in nats with the true label, summed over the tokens of a text; the same with
        answers drawn from the model; or ``(outputs, batch) -> Float["example"]``.
    logits : str or None
        Which output holds the logits.
    place : Place
        Where the module takes its inputs.
    seed : int, default=0
        Key of what is sampled; an example draws the same in every batch.
    """

    model: Model
    module: nn.Module
    loss: Loss
    logits: str | None
    place: Place
    seed: int = 0

    def __call__(
        self, batch: InputBatch, drawn: Int[Tensor, "answer"] | None = None
    ) -> "BatchLosses":
        """Run the module on a batch that is padded on the right."""
        n = len(batch)
        if callable(self.loss):
            per_row = self.loss(self._output(batch), batch)
            if not isinstance(per_row, Tensor) or per_row.shape != (n,):
                raise InputError(
                    f"loss: expected a tensor of {n} losses, one for each example, got "
                    f"{getattr(per_row, 'shape', type(per_row).__name__)}."
                )
            return BatchLosses(per_row, torch.ones(n, dtype=torch.bool))
        answers = self.answers(batch)
        if self.loss == "sampled":
            truth = self._sampled(answers, batch) if drawn is None else drawn
            answers = replace(answers, truth=truth)
        return cross_entropy(answers, n)

    def answers(self, batch: InputBatch) -> Answers:
        """Return the module's answers on a batch that is padded on the right."""
        return answers_in(self._output(batch), self.model, self.module, batch, self.logits)

    def _output(self, batch: InputBatch) -> Any:
        args, kwargs = self.place.call(batch.args, batch.kwargs)
        return self.module(*args, **kwargs)

    def _sampled(self, told: Answers, batch: InputBatch) -> Int[Tensor, "answer"]:
        """Return an answer sampled from each distribution, keyed by example and position."""
        first = torch.searchsorted(told.example, told.example)
        place = torch.arange(len(told.example)) - first
        base = base_hashes(batch.keys, "sample", self.seed)
        occurrence = batch.occurrence.cpu().numpy()
        which = told.example.numpy()
        draw = draws(base[which], place.numpy(), occurrence[which])
        share = (draw.double() / 2.0**64 + 0.5).clamp(0.0, 1.0 - 1e-12)
        sums = told.log_p.detach().double().exp().cumsum(1)
        return torch.searchsorted(sums / sums[:, -1:], share[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class BatchLosses:
    """Losses of the examples of one batch.

    Parameters
    ----------
    losses : Float[Tensor, "example"]
        With their graph; 0 where nothing is known of an example.
    known : Bool[Tensor, "example"]
        Which examples have a label, or an answer at all.
    answers : Answers or None
        The answers that the losses are computed from.
    """

    losses: Float[Tensor, "example"]
    known: Bool[Tensor, "example"]
    answers: Answers | None = None

    def drawn_for(self, row: int) -> Int[Tensor, "answer"] | None:
        """Return the classes or tokens used as the truth of one example, or None."""
        return None if self.answers is None else self.answers.truth[self.answers.example == row]


def cross_entropy(told: Answers, n: int) -> BatchLosses:
    """Return the cross-entropy in nats of ``n`` examples, summed over the answers of each.

    Parameters
    ----------
    told : Answers
        Answers of the batch, with their logits and targets.
    n : int
        Number of examples.
    """
    each = -told.log_p_of_truth
    losses = each.new_zeros(n).index_add(0, told.example, each)
    n_known = torch.zeros(n, dtype=torch.long).index_add_(0, told.example, (told.truth >= 0).long())
    return BatchLosses(losses, n_known > 0, told)


def one_of(batch: InputBatch, row: int) -> InputBatch:
    """Return the inputs of one example of a batch, padded as they are."""
    n, cut = len(batch), slice(row, row + 1)

    def one(value: Any) -> Any:
        for leaf in leaves(value).values():
            if leaf.ndim and leaf.shape[0] == n:
                value = replaced(value, leaf, leaf[cut])
        return value

    def named(name: str, value: Any) -> Any:
        if name not in batch.packed:
            return one(value)
        return value.split(batch.packed[name].tolist())[row]

    changed: dict[str, Any] = {
        "args": tuple(map(one, batch.args)),
        "kwargs": {name: named(name, value) for name, value in batch.kwargs.items()},
        "packed": {name: counts[cut] for name, counts in batch.packed.items()},
        "columns": {name: value[cut] for name, value in batch.columns.items()},
    }
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name not in (*changed, *OF_ALL_ROWS) and value is not None:
            changed[field.name] = value[cut]
    return replace(batch, **changed)
