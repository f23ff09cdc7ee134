"""What an output answers, for models of every task: distributions, or a vector for each example."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.tap.hooks.outputs import find, leaves
from sonde.tap.model.vary import token_ids
from sonde.tap.streams.answers import Answers, answers_in


def told_by(output: Any, model: Model, batch: InputBatch, logits: str | None) -> Answers | None:
    """Return the distributions that an output holds, or None if the model answers with vectors.

    Parameters
    ----------
    output
        What the module returned for the batch.
    model : Model
    batch : InputBatch
        Padded on the right.
    logits : str or None
        Which output holds the logits; None if the task has no logits of its own: those of a decoder
        or of a masked language model are found by their name, one row for each token.
    """
    if logits is not None:
        return answers_in(output, model, model.module, batch, logits)
    found = find(output, "logits")
    axis = "pos2" if model.task == "seq2seq" else "pos"
    ids = token_ids(batch, axis)
    if found is None or not found.is_floating_point():
        return None
    if found.ndim != 3 or ids is None or ids.shape != found.shape[:2]:
        return None
    mask = batch.decoder_mask if axis == "pos2" else batch.mask
    real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.cpu()
    example, place = real.nonzero(as_tuple=True)
    log_p = torch.log_softmax((found if found.dtype == torch.float64 else found.float()).cpu(), -1)
    truth = torch.full(ids.shape, -1)
    if axis == "pos2":
        truth[:, :-1] = torch.where(real[:, 1:], ids[:, 1:].cpu(), -1)
    return Answers(log_p[example, place], truth[example, place], example)


def vectors_of(output: Any, model: Model, batch: InputBatch) -> Float[Tensor, "example dim"]:
    """Return the vector that a model gives each example: the mean of its states over real tokens.

    The states are the first output with a state for each token, else the first with a row for each
    example; further axes of a map are averaged.

    Raises
    ------
    InputError
        If there is no such output.
    """
    n = len(batch)
    found = [x for x in leaves(output).values() if x.is_floating_point() and x.ndim > 1]
    rows = [x for x in found if len(x) == n]
    if not rows:
        raise InputError(
            f"fidelity: expected logits or a vector for each example, got "
            f"{', '.join(str(tuple(x.shape)) for x in found) or 'no numbers'} from "
            f"{type(model.module).__name__}. Wrap the model so that it returns one of these."
        )
    states = next((x for x in rows if x.ndim == 3), rows[0]).double().cpu()
    if states.ndim == 4:
        return states.mean((2, 3))
    if states.ndim == 2:
        return states
    mask = batch.mask
    if mask is None or mask.shape != states.shape[:2]:
        return states.flatten(1, -2).mean(1)
    weight = mask.cpu().double()[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
