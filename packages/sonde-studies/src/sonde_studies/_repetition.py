"""Repetition in texts, and the attention columns of a language model that may precede it."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.edit import AttentionColumns
from sonde.tap import Tap
from sonde_studies._written import likelihood

GRAM = 8
PRODUCT = AttentionColumns(average=False)
"""Scores as in the paper: products of attention, not means of logarithms."""


def repeated(ids: Int[Tensor, "text pos"]) -> Float[Tensor, "text"]:
    """Return the fraction of each text's 8-grams that occurred in it before."""
    grams = [[tuple(g) for g in np.lib.stride_tricks.sliding_window_view(x, GRAM)] for x in ids]
    return torch.tensor([1 - len(set(text)) / len(text) for text in grams])


@torch.no_grad()
def column_scores(
    model: Any, ids: Int[Tensor, "text pos"], given: int, old: int
) -> dict[str, Float[Tensor, "text"]]:
    """Return the highest attention columns of the last layer, and the log-probability.

    Parameters
    ----------
    model : nn.Module
        A language model with ``model.layers``.
    ids : Int[Tensor, "text pos"]
    given : int
        Tokens of the prompt, which are left out.
    old : int
        Least number of later tokens of an old column.
    """
    site = f"model.layers.{model.config.num_hidden_layers - 1}:probs"
    with Tap(model, site) as tap:
        tap.run(ids, use_cache=False)
        (rows,) = tap.rows.values()
    n = ids.shape[1]
    probs = rows.reshape(len(ids), n, -1, n).movedim(2, 1)[:, :, given:, given:].float()
    mean = AttentionColumns().score(probs)
    return {
        "highest": mean.amax(1),
        "highest old": mean[:, :-old].amax(1),
        "product": PRODUCT.score(probs).amax(1),
        "likely text": likelihood(model, ids, given),
    }
