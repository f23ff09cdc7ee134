"""Replacement prompts: rows of token ids with padding on the left."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError

NextLogits = Callable[[Tensor, Tensor], Tensor]
"""Logits of the next token after whole texts: of ids and mask ``(row, pos)`` to ``(row, token)``"""

Rewording = Callable[[Tensor, Tensor, NextLogits], tuple[Tensor, Tensor]]
"""Called once with ids and mask of the prompts and the logits after any; returns other prompts"""


@final
@dataclass(frozen=True, eq=False)
class OtherPrompts:
    """Prompts that replace those of a generation, in the same order.

    Parameters
    ----------
    input_ids : Int[Tensor, "example pos"]
        Token ids of the other prompts, padded to equal length.
    attention_mask : Int[Tensor, "example pos"] or None, default=None
        1 at real tokens; None if nothing is padded.

    Examples
    --------
    >>> other = OtherPrompts(torch.tensor([[1, 2], [3, 4]]))
    >>> ids = torch.zeros(4, 5, dtype=torch.long)  # two beams of each prompt
    >>> other(ids, ids == 0, None)[0].tolist()
    [[1, 2], [1, 2], [3, 4], [3, 4]]
    """

    input_ids: Int[Tensor, "example pos"]
    attention_mask: Int[Tensor, "example pos"] | None = None

    def __call__(
        self,
        ids: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos"],
        logits: NextLogits | None,
    ) -> tuple[Int[Tensor, "row pos2"], Bool[Tensor, "row pos2"]]:
        """Return these prompts, each repeated for the beams of the prompt it replaces."""
        given = self.input_ids.to(ids.device)
        real = torch.ones_like(given) if self.attention_mask is None else self.attention_mask
        if len(given) == 0 or len(ids) % len(given):
            raise InputError(
                "OtherPrompts: expected one other prompt for each row of input_ids, got "
                f"{len(given)} for {len(ids)} rows. Pass one prompt for each row of input_ids."
            )
        times = len(ids) // len(given)
        given, real = given.repeat_interleave(times, 0), real.to(ids.device) != 0
        return packed(given, real.repeat_interleave(times, 0))


def packed(
    ids: Int[Tensor, "row pos"], keep: Bool[Tensor, "row pos"]
) -> tuple[Int[Tensor, "row pos2"], Bool[Tensor, "row pos2"]]:
    """Return each row's tokens to keep, moved to its right end, and their mask.

    Examples
    --------
    >>> ids = torch.tensor([[7, 8, 9]])
    >>> packed(ids, torch.tensor([[True, False, True]]))[0].tolist()
    [[7, 9]]
    """
    order = keep.to(torch.uint8).argsort(dim=1, stable=True)
    longest = max(1, int(keep.sum(dim=1).max()))
    order = order[:, order.shape[1] - longest :]
    return ids.gather(1, order), keep.gather(1, order)


def left_out(
    ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], logits: NextLogits
) -> Float[Tensor, "pos row token"]:
    """Return the next token's logits after leaving out each token of the texts in turn."""
    parts: list[Tensor] = []
    for position in range(ids.shape[1]):
        keep = mask.clone()
        keep[:, position] = False
        parts.append(logits(*packed(ids, keep)))
    return torch.stack(parts)
