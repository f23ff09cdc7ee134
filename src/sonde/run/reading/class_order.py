"""Match each output of a model to a class, if the model does not name its outputs."""

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sonde.core.inputs import InputBatch, Model
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.data.inputs import ItemInputs
from sonde.data.opening import class_names
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch

ROWS: Final = 256
BEYOND_CHANCE: Final = 0.2
SHOWN: Final = 6


def stream_in_sorted_order(stream: Stream) -> Stream:
    """Return a live stream, its labels marked as the model's classes if its answers match them."""
    if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
        return stream  # also prompts that are continued: their inputs wrap the items
    return replace(stream, inputs=in_sorted_order(stream.model, stream.inputs, stream.seed))


def numbers_outputs(stream: LiveStream) -> bool:
    """Return whether a stream's labels number the outputs of a model that does not name them.

    Labels that are names are held against the model's answers, as ``in_sorted_order`` does it.
    """
    if len(stream.label_names) < 2 or not isinstance(stream.inputs, ItemInputs):
        return False
    is_unnamed = stream.model.task != "causal" and class_names(stream.model) is None
    return is_unnamed and in_sorted_order(stream.model, stream.inputs, stream.seed).own_labels


def in_sorted_order(model: Model, inputs: ItemInputs, seed: int = 0) -> ItemInputs:
    """Return the inputs with labels declared the model's classes if its answers match them.

    Labels that are names are numbered in sorted order, as most loaders of folders do it. On 256
    rows drawn by content the model's accuracy must be at least ``chance + (1 - chance) / 5``, and
    no other order may be correct on a fifth more rows: otherwise the user must name the classes.

    Parameters
    ----------
    model : Model
    inputs : ItemInputs
        Returned as they are if the model brings names, if classes were named, or without labels.
    seed : int, default=0
    """
    if inputs.own_labels or inputs.typed.get("classes"):
        return inputs
    names = inputs.label_names
    if len(names) < 2 or class_names(model) is not None:
        return inputs
    pool = inputs.drawn(ROWS, seed)
    answered = answer_numbers(model, pool, len(names))
    truth = np.asarray(pool.listing.label)
    if answered is None or not (truth >= 0).any():
        return inputs
    answered, truth = answered[truth >= 0], truth[truth >= 0]
    order = best_order(torch.from_numpy(answered), torch.from_numpy(truth), len(names)).numpy()
    right, best = float((answered == truth).mean()), float((order[answered] == truth).mean())
    chance = 1 / len(names)
    if right < chance + BEYOND_CHANCE * (1 - chance) or best > 1.2 * right:
        return inputs
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return inputs.with_own_labels(
        f"the model does not name its outputs; with the class names {shown} in this order, its "
        f"accuracy is {right:.0%} on {plural(len(truth), 'row')} (name another order with "
        "--classes)"
    )


def best_order(
    answer: Int[Tensor, "row"], truth: Int[Tensor, "row"], n: int
) -> Int[Tensor, "output"]:
    """Return the one-to-one assignment of classes to outputs with the highest accuracy."""
    table = torch.bincount(answer * n + truth, minlength=n * n).reshape(n, n)
    _, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return torch.from_numpy(columns)


def answer_numbers(
    model: Model, inputs: ItemInputs, n_classes: int | None = None
) -> Int[np.ndarray, "row"] | None:
    """Return the index of each row's largest logit, or None unless ``n_classes`` logits exist."""
    answers = np.full(len(inputs), -1, dtype=np.int64)
    for batch in inputs.batches(0, len(inputs)):
        logits = class_logits(model, batch)
        if logits is None or n_classes not in (None, logits.shape[1]):
            return None
        answers[batch.order.numpy()] = logits.argmax(1).numpy()
    return answers


def class_logits(model: Model, batch: InputBatch) -> Float[Tensor, "row class"] | None:
    """Return a classifier's logits, or None if the model has no logits of two or more classes."""
    with torch.no_grad():
        logits = find_logits(watch(model.module, batch, ()).output)
    is_usable = logits is not None and logits.ndim == 2 and logits.shape[1] > 1
    return logits.float().cpu() if is_usable and logits is not None else None
