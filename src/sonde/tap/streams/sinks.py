"""Find the sinks of a model from the first examples of a stream."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.sinks import RATIO, Sinks
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.sites import resolve
from sonde.tap.model.vary import token_ids
from sonde.tap.streams.small_batches import cut, single

EXAMPLES, TOKENS, LEAST = 4, 32, 4
"""Examples that are looked at, tokens of each, and the fewest tokens for a median."""


Rows = Mapping[str, Float[Tensor, "_pos _dim"]]


def find_sinks(
    model: Model,
    inputs: Inputs,
    read: Callable[[Sequence[str], Sequence[InputBatch]], list[Rows]],
) -> Sinks:
    """Return the roles whose states are long in half of the blocks; none without token ids.

    Parameters
    ----------
    model : Model
    inputs : Inputs
        The first examples are looked at, one by one, without padding.
    read : callable
        Returns the rows of all tokens at some sites, for each of several inputs.
    """
    inputs = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
    if model.task == "seq2seq":
        return Sinks.NONE
    try:
        blocks = [str(site) for site in resolve(model.module, "blocks")]
    except SiteError:
        return Sinks.NONE
    batches: list[InputBatch] = []
    for i in range(min(EXAMPLES, len(inputs.group_keys))):
        batch = single(inputs, i)
        ids = None if batch is None else token_ids(batch)
        if batch is not None and batch.decoder_mask is None and _is_long_enough(ids):
            batches.append(cut(batch, TOKENS))
    if not batches:
        return Sinks.NONE
    try:
        rows = read(blocks, batches)
    except SiteError:
        return Sinks.NONE
    special = [None if one.special is None else one.special[0].bool().cpu() for one in batches]
    return sinks_of(rows, special)


def sinks_of(
    texts: list[Rows],
    special: list[Bool[Tensor, "_pos"] | None],
) -> Sinks:
    """Return the roles that are sinks, from the states of all tokens at several sites.

    Parameters
    ----------
    texts : list of mapping of site to Float[Tensor, "pos dim"]
    special : list of Bool[Tensor, "pos"] or None
        The special tokens of each text.
    """
    first: list[Tensor] = []
    marked: list[Tensor] = []
    for rows, marks in zip(texts, special, strict=True):
        length = torch.stack([x.double().norm(dim=1).cpu() for x in rows.values()])
        ratio = length / length.median(dim=1, keepdim=True).values
        first.append(ratio[:, 0])
        if marks is not None and bool(marks[1:].any()):
            marked.append(ratio[:, 1:][:, marks[1:]].median(dim=1).values)
    return Sinks(first=_is_long(first), special=_is_long(marked))


def _is_long_enough(ids: Tensor | None) -> bool:
    return ids is not None and ids.shape[1] >= LEAST


def _is_long(ratios: list[Float[Tensor, "site"]]) -> bool:
    """Return whether the median over texts is long in at least half of the sites."""
    if not ratios:
        return False
    typical = torch.stack(ratios).median(dim=0).values
    return bool((typical >= RATIO).double().mean() >= 0.5)
