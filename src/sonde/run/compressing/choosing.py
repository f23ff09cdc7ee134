"""Choose examples to fit a compression on and other examples to judge it by, from hashed ids."""

import math
import warnings
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch

from sonde.compress import layer_grams
from sonde.core.errors import InputError, SondeWarning
from sonde.core.inputs import Model
from sonde.data.inputs import ItemInputs
from sonde.data.listing import taken
from sonde.tap import place_of
from sonde.tap.hooks.holding import in_eval

ROWS_PER_INPUT = 8
"""Rows for each input of a layer: more change its moments little."""


def chosen_parts(inputs: ItemInputs, fitted: int, held: int) -> tuple[ItemInputs, ItemInputs]:
    """Return at most ``fitted`` examples to fit on, and at most ``held`` others to judge by.

    Both are drawn by hashes of ids, whatever the order of the data. Examples of one group, such as
    pieces of one text, never stand on both sides, unless all are of one group.

    Parameters
    ----------
    inputs : ItemInputs
    fitted, held : int

    Raises
    ------
    InputError
        If there are fewer than two examples.
    """
    if len(inputs) < 2:
        raise InputError(
            "sonde compress: expected at least 2 examples, one to calibrate on and one to compare "
            f"on, got {len(inputs)}. Pass more data."
        )
    listing = inputs.listing
    own = [key + int(n).to_bytes(8, "little") + int(piece).to_bytes(8, "little")
           for key, n, piece in zip(listing.keys, listing.occurrence, listing.piece, strict=True)
           ]  # fmt: skip
    groups = list(inputs.group_keys)
    unit = groups if len({*groups}) > 1 else own
    distinct = sorted({*unit}, key=_draw)
    n_held = min(len(distinct) - 1, math.ceil(len(distinct) * held / (fitted + held)))
    ours = {*distinct[:n_held]}
    order = sorted(range(len(inputs)), key=lambda i: _draw(own[i]))
    sides = [[i for i in order if (unit[i] in ours) == is_held] for is_held in (False, True)]
    first, second = (
        replace(inputs, listing=taken(listing, np.sort(np.array(side[:n], np.int64)), "hash"))
        for side, n in zip(sides, (fitted, held), strict=True)
    )
    return first, second


def require_still_weights(model: Model, inputs: ItemInputs) -> None:
    """Raise if the model's forward pass writes into its weights; runs one example.

    Raises
    ------
    InputError
        Naming a weight.
    """
    named = dict(model.module.named_parameters())
    before = {name: x._version for name, x in named.items()}
    for batch in inputs.batches(0, 1):
        args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
        with torch.no_grad(), in_eval(model.module):
            model.module(*args, **kwargs)
    moved = [name for name, x in named.items() if x._version != before[name]]
    if moved:
        more = f" and {len(moved) - 1} more" if moved[1:] else ""
        raise InputError(
            f"sonde compress: the forward pass of {type(model.module).__name__} writes into "
            f"{moved[0]}{more}, but packed weights cannot be written to. Switch this off in "
            "config.json (for RWKV: rescale_every 0)."
        )


def enough_examples(model: Model, inputs: ItemInputs) -> int:
    """Return how many examples give each layer eight rows per input feature."""
    n = min(4, len(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # so few examples may miss a layer
        states = layer_grams(model, inputs, stop=n, progress=False).states.values()
    return max(math.ceil(ROWS_PER_INPUT * len(s.mean) * n / s.n) for s in states if s.n)


def _draw(key: bytes) -> bytes:
    return blake2b(key, digest_size=16, person=b"compress").digest()
