"""What a call of a live model tells of its examples: tokens, padding, and what a cache holds."""

from typing import Any

import torch
from torch import Tensor, nn

from sonde.core._kinds import is_dict
from sonde.core.inputs import InputBatch
from sonde.core.token_masks import REAL, find_mask, real_tokens
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.outputs import arguments, decodes

MASKS = (REAL, "decoder_attention_mask")


class Call:
    """The arguments of one call, as rows need them.

    Parameters
    ----------
    root : nn.Module
    args, kwargs
        What it is called with.

    Attributes
    ----------
    named : dict
        The arguments by name.
    past : int
        Tokens in the key-value cache that the call goes on from.
    fed : Tensor or None
        Ids of the tokens whose states the call makes.
    axis : {"pos", "pos2"}
        Their axis: ``pos2`` where an encoder has tokens of its own.
    """

    def __init__(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.named = arguments(root, args, kwargs) if args else kwargs
        cache = cache_in(self.named)
        self.past = 0 if cache is None else cached_length(cache)
        self.fed = _fed(self.named)
        self._has_target = decodes(root, self.named)
        self.axis = "pos2" if self._has_target else "pos"
        length = None if self.fed is None else self.past + self.fed.shape[-1]
        self._masks = {name: _mask(self.named.get(name), length) for name in MASKS}
        if self._masks[REAL] is None and (found := find_mask(self.named)) is not None:
            self._masks[REAL] = real_tokens(*found)

    def inputs(self, n: int, special: Tensor | None) -> InputBatch:
        """Return the examples of the call, told apart by their number, not by their content."""
        index = torch.arange(n)
        masks, own = dict(self._masks), MASKS[self._has_target]
        mask, first = masks[own], None
        if self.past:
            first = torch.full((n,), self.past)
            if mask is not None and mask.shape[1] > self.past:
                first = mask[:, : self.past].sum(dim=1).cpu()
            masks[own] = None if mask is None else mask[:, self.past :]
        keys = [b""] * n
        return InputBatch(
            args=self.args,
            kwargs=self.kwargs,
            ids=[str(i) for i in range(n)],
            keys=keys,
            order=index,
            occurrence=index,
            group_keys=keys,
            label=torch.full((n,), -1),
            mask=masks["attention_mask"],
            decoder_mask=masks["decoder_attention_mask"],
            special=special,
            first=first,
        )

    def marked(self, special: Tensor, otherwise: Tensor | None) -> Tensor | None:
        """Return which real tokens are of the ids ``special``.

        ``otherwise`` are the tokens of a call that is given none of its own.
        """
        ids = self.named.get("input_ids", otherwise)
        if not isinstance(ids, Tensor):
            return None
        found = torch.isin(ids.cpu(), special)
        mask = self._masks["attention_mask"]
        past = 0 if self._has_target else self.past
        real = None if mask is None else mask[:, past:].cpu()
        return found if real is None or real.shape != found.shape else found & real


def _mask(found: Any, length: int | None) -> Tensor | None:
    """Return which tokens are real; of a mask for each query, what the last one may look at.

    ``generate`` makes such masks, true or 0 where a query may look, for caches of a fixed size.
    """
    found = found.get("full_attention") if is_dict(found) else found
    if isinstance(found, Tensor) and found.ndim == 4:
        last = found[:, 0, -1, :length]
        return last.clone() if last.dtype == torch.bool else last == 0
    is_plain = isinstance(found, Tensor) and found.ndim == 2
    return found.to(torch.bool, copy=True) if is_plain else None


def _fed(named: dict[str, Any]) -> Tensor | None:
    found = (named.get(name) for name in ("decoder_input_ids", "input_ids"))
    return next((ids for ids in found if isinstance(ids, Tensor)), None)
