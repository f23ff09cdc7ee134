"""Attention layers that call torch's own functions: fused attention, or softmax and product.

While such a module runs, calls of these functions go through a ``TorchFunctionMode``, which runs
them as they are. A fused call shows every port. A softmax over (example, head, query, key) shows
the probabilities, and the product that follows shows the values and heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sonde.tap.attention.figures import figures
from sonde.tap.attention.interface import KeySource, attend
from sonde.tap.attention.watching import WatchedAttention

FUSED = functional.scaled_dot_product_attention
SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class FunctionsWatched(TorchFunctionMode):
    """Shows hooks the tensors that one attention call passes to torch's functions.

    Parameters
    ----------
    module : nn.Module
    watched : WatchedAttention
    source : KeySource
        Where the keys come from.
    """

    def __init__(self, module: nn.Module, watched: WatchedAttention, source: KeySource) -> None:
        super().__init__()
        self.module, self.watched, self.source = module, watched, source
        self._shape: torch.Size | None = None  # of probabilities that wait for their product

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is FUSED:
            return self._fused(dict(zip(_NAMES, args, strict=False)) | kwargs)
        if func in SOFTMAX:
            return self._softmax(args[0] if args else kwargs["input"], func(*args, **kwargs))
        if func in PRODUCT and len(args) == 2 and args[0].shape == self._shape:
            return self._product(func, *args)
        return func(*args, **kwargs)

    def _fused(self, named: dict[str, Any]) -> Tensor:
        query, key, value, mask = (named.pop(name, None) for name in _NAMES[:4])
        if query.ndim != 4:
            return FUSED(query, key, value, mask, **named)
        given = mask if mask is None else mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)
        named["is_causal"] = bool(named.get("is_causal"))
        named["dropout"] = named.pop("dropout_p", 0.0)
        self.watched.first.notes[id(self.module)] = self.source
        out = attend(_kernel, _explicit, "sdpa", self.module, query, key, value, given, **named)
        return out[0].transpose(1, 2)

    def _softmax(self, scores: Tensor, probs: Tensor) -> Tensor:
        if probs.ndim != 4 or not probs.is_floating_point():
            return probs
        self._shape = probs.shape
        if not self.watched.wants("probs"):
            return probs
        given = probs.transpose(1, 2)
        new = self.source.new(probs.shape[2], probs.shape[3])
        seen = scores > torch.finfo(scores.dtype).min / 2
        measures = figures(given, seen, new.start if self.source.same_text else None)
        left = self.watched.seen("probs", given, measures, in_sight=seen)
        return probs if left is given else left.transpose(1, 2)

    def _product(self, func: Callable[..., Tensor], probs: Tensor, value: Tensor) -> Tensor:
        """Return probabilities times values, (example, head, query, width)."""
        self._shape = None
        if value.ndim != 4 or value.shape[2] != probs.shape[3]:
            return func(probs, value)
        part = self.source.new(probs.shape[2], value.shape[2])
        new = value[:, :, part].transpose(1, 2)
        left = self.watched.seen("values", new)
        if left is not new:
            whole = (value[:, :, : part.start], left.transpose(1, 2), value[:, :, part.stop :])
            value = torch.cat(whole, 2)
        out = func(probs, value)
        heads = out.transpose(1, 2)
        kept = self.watched.seen("heads", heads)
        return out if kept is heads else kept.transpose(1, 2)


def _kernel(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any):
    named["dropout_p"] = named.pop("dropout")
    return FUSED(query, key, value, mask, **named).transpose(1, 2), None


def _explicit(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Return heads and probabilities by the definition of the fused function."""
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    probs = (scores if mask is None else scores + mask).softmax(-1)
    return (probs @ value).transpose(1, 2), probs
