"""Loss recovered: how well a model answers from the states that a dictionary reconstructs."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sonde.core.edit import Edit, Replace
from sonde.core.inputs import Inputs, Model
from sonde.core.site import POSITIONS
from sonde.explain import Dictionary
from sonde.tap import editing, live_stream
from sonde.tap.streams.answers import answers

LEAST = 1e-6
MOST = 32
"""Examples that the model runs on again."""


@dataclass(frozen=True)
class LossRecovered:
    """Cross-entropy of a model with a site unchanged, reconstructed, and held at its mean.

    ``value`` is ``(mean - rebuilt) / (mean - clean)``: 1 if answers from the rebuilt
    states are as good as the model's own, 0 if they are no better than without the site, NaN if the
    answers do not depend on the site.

    Parameters
    ----------
    clean, rebuilt, mean : float
        Nats per answer.
    n : int
        Examples whose answers are known.
    """

    clean: float
    rebuilt: float
    mean: float
    n: int

    @property
    def value(self) -> float:
        """Fraction of the loss that the dictionary recovers."""
        gap = self.mean - self.clean
        return (self.mean - self.rebuilt) / gap if abs(gap) > LEAST else math.nan

    def json(self) -> dict[str, Any]:
        """Return the fraction of the loss recovered, and the losses that it is computed from."""
        value = None if math.isnan(self.value) else self.value
        return {"value": value, **asdict(self)}


def loss_recovered(
    model: Model, inputs: Inputs, dictionary: Dictionary, site: str
) -> LossRecovered | None:
    """Return the loss that a dictionary recovers, or None if the data have no correct answers.

    The model runs on the first ``MOST`` examples, which should not be examples of the training. The
    mean of the site is taken over them too.

    Parameters
    ----------
    model : Model
        A classifier, on data with labels, or a language model.
    inputs : Inputs
    dictionary : Dictionary
        It must rebuild the site that it reads.
    site : str
        Of the model.

    Raises
    ------
    InputError
        If the dictionary rebuilds another site than it reads, or the model gives no logits.
    """
    rebuilt = dictionary.edit()
    mean = Replace(_mean(model, inputs, site))
    logits = live_stream(model, inputs, logits_asked=True).logits_key
    losses = [
        _loss(model, inputs, logits, _act(model, edit, site)) for edit in (None, rebuilt, mean)
    ]
    is_known = ~losses[0].isnan()
    if not bool(is_known.any()):
        return None
    clean, rebuilt_loss, mean_loss = (float(loss[is_known].mean()) for loss in losses)
    return LossRecovered(clean, rebuilt_loss, mean_loss, int(is_known.sum()))


def _mean(model: Model, inputs: Inputs, site: str) -> Tensor:
    """Return the mean of the rows at a site, without sinks."""
    stream = live_stream(model, inputs, sites=site, reducer=POSITIONS, logits=False)
    total, n = torch.zeros(stream.schema[0].dim, dtype=torch.float64), 0
    for batch in stream.batches(0, min(MOST, len(inputs))):
        ((key, rows),) = batch.rows.items()
        rows = rows[~batch.column("sink", key).to(rows.device)]
        total, n = total + rows.double().sum(0).cpu(), n + len(rows)
    return (total / max(1, n)).float()


def _act(model: Model, edit: Edit | None, site: str) -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext if edit is None else lambda: editing(model, edit, site, here=True)


def _loss(
    model: Model,
    inputs: Inputs,
    logits: str | None,
    act: Callable[[], AbstractContextManager[Any]],
) -> Tensor:
    """Return the cross-entropy per answer of each example; NaN for an example without answers."""
    parts: list[Tensor] = []
    for batch in inputs.batches(0, min(MOST, len(inputs))):
        with act():
            answered = answers(model, model.module, batch, logits)
        parts.append(answered.per_example(-answered.log_p_of_truth, len(batch)))
    return torch.cat(parts)
