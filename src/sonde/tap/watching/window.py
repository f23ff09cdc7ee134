"""A part of the tokens of a call: what a model computed where it left tokens out.

``generate`` asks for the logits of a prompt's last token alone.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch


def window(batch: InputBatch, axis: str, ids: Tensor, start: int) -> InputBatch:
    """Return the inputs from a token on, whose ids stand on one axis.

    From ``start = -1`` on they are all tokens after one more, which was fed in an earlier call.

    Parameters
    ----------
    batch : InputBatch
    axis : {"pos", "pos2"}
    ids : Int[Tensor, "example pos"]
    start : int
    """
    name, mask = ("input_ids", "mask") if axis == "pos" else ("decoder_input_ids", "decoder_mask")
    real = getattr(batch, mask)
    real = torch.ones(ids.shape, dtype=torch.bool) if real is None else real
    first = torch.zeros(len(ids), dtype=torch.int64) if batch.first is None else batch.first
    special = batch.special if axis == "pos" else None
    return replace(
        batch,
        args=(),
        kwargs={name: _from(ids, start, 0)},
        special=None if special is None else _from(special, start, False),
        first=first + (real[:, :start].sum(1).cpu() if start > 0 else start),
        **{mask: _from(real, start, True)},
    )


def _from(x: Tensor, start: int, before: int | bool) -> Tensor:
    if start >= 0:
        return x[:, start:]
    return torch.cat([x.new_full((len(x), -start), before), x], dim=1)
