"""A language model tuned to tell two kinds of texts from its mean last state."""

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sonde_studies.arms import note

RATE, HEAD_RATE, BATCH = 1e-4, 1e-2, 32


@torch.no_grad()
def layer_means(
    model: nn.Module, ids: Int[Tensor, "text pos"], first: int = 0
) -> dict[str, Float[Tensor, "text dim"]]:
    """Return each text's mean state from token ``first`` on, for each layer."""
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return {f"layer {i}": x[:, first:].mean(1) for i, x in enumerate(states)}


@torch.enable_grad()
def tuned_on_kinds(
    base: nn.Module, ids: Int[Tensor, "kind text pos"], seed: int, steps: int, lot: bool
) -> nn.Module:
    """Return a copy trained with a linear head on the mean last state.

    Parameters
    ----------
    base : nn.Module
        A language model of ``transformers``.
    ids : Int[Tensor, "kind text pos"]
        Texts of two kinds.
    seed, steps : int
    lot : bool
        Train on the kinds in random order, which no text tells.
    """
    draw = torch.Generator().manual_seed(seed)
    model: Any = deepcopy(base)
    texts, label = ids.flatten(0, 1), torch.arange(2).repeat_interleave(ids.shape[1])
    if lot:
        label = label[torch.randperm(len(label), generator=draw)]
    head = torch.zeros(model.config.hidden_size, 2, requires_grad=True)
    both = [
        {"params": list(model.parameters()), "lr": RATE},
        {"params": [head], "lr": HEAD_RATE},
    ]
    note(rows=len(texts))
    optimiser = torch.optim.Adam(both)
    for _ in range(steps):
        rows = torch.randint(len(texts), (BATCH,), generator=draw)
        states = model(input_ids=texts[rows], output_hidden_states=True).hidden_states[-1]
        optimiser.zero_grad()
        functional.cross_entropy(states.mean(1) @ head, label[rows]).backward()
        optimiser.step()
    return model.eval()
