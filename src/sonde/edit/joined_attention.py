"""Attention that includes the keys and values of another run.

To bring in one mean or a state for each place instead, take ``Inject``; for a net that is trained
to look at a second source, ``sonde.layers.DecoupledCrossAttention``.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.tap.attention.interface import (
    EXPLICIT,
    in_sight,
    kernels_through,
    require_mask,
)
from sonde.tap.hooks.holding import in_eval
from sonde.weights import module_of

Heads = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values (example, head, position, width), and which positions are real."""


@contextlib.contextmanager
def joined_attention(
    model: Model | nn.Module,
    source: Mapping[str, Tensor],
    *,
    layers: Sequence[str] | None = None,
    strength: float = 1.0,
    here: bool = False,
) -> Iterator[None]:
    """Let each query also attend to its layer's keys and values on another input.

    The source is run once; inside the ``with`` block its keys and values stand before those of
    each call, in one softmax: ``softmax([s + ln strength, q k^T]) [v_source, v]`` with the scores
    ``s`` of the source's keys. What a query sees of its own text stays as it is.

    Range        strength 0 gives the bits of the model as it is.
    Cost         a forward of the source, and attention over both lengths.
    Assumes      attentions that take their kernel from the ``AttentionInterface`` of transformers,
                 with a mask for each query (sdpa or eager); an example of the source for each
                 example; positions of the call that go on after the source's (``position_ids``):
                 if both start at 0, a language model with rotary positions fails.
    Differs      from the paper: any two runs of one model, no network of faces.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose attention is changed inside the block.
    source : mapping of str to Tensor
        Named inputs of the run that is brought in, with ``attention_mask`` if some are padded.
    layers : sequence of str, optional
        Names of the attentions that are joined; all by default.
    strength : float, default=1.0
        Weight of the source's keys before the softmax is normalised.
    here : bool, default=False
        Act on the forwards of this thread or task alone; by default on those of every caller.

    Raises
    ------
    InputError
        If a layer is unknown, or no attention of the source's run can be joined.
    ShapeError
        If a call has another number of examples than the source.

    Examples
    --------
    >>> import sonde
    >>> net = sonde.load("sonde:stdlib", device="cpu").module
    >>> ids = torch.tensor([list(b"def join(self")])
    >>> with joined_attention(net, {"input_ids": ids}):
    ...     joined = net(ids).logits
    >>> bool((joined - net(ids).logits).abs().max() > 0.1)
    True

    References
    ----------
    wu2024infiniteid
    """
    module = module_of(model)
    names = {id(part): name for name, part in module.named_modules()}
    if unknown := sorted({*(layers or ())} - {*names.values()}):
        raise InputError(f"joined_attention: expected layers of the model, got {unknown[0]!r}.")
    if not 0 <= strength < math.inf:
        raise InputError(f"joined_attention: expected strength of at least 0, got {strength}.")
    if strength == 0:
        yield
        return
    chosen = {owner for owner, name in names.items() if layers is None or name in layers}
    kept = _Kept(chosen)
    with torch.no_grad(), in_eval(module), kernels_through(kept.record):
        module(**source)
    if not kept.heads:
        raise InputError(
            "joined_attention: expected attention layers that take their kernel from the "
            f"AttentionInterface of transformers, found none in {type(module).__name__} among "
            f"{'all layers' if layers is None else ', '.join(layers)}."
        )
    with kernels_through(_Joined(kept.heads, math.log(strength)).attend, here=here):
        yield


@dataclass(frozen=True, eq=False)
class _Kept:
    """Keys and values of the attention layers of a run, by id of the module."""

    chosen: set[int]
    heads: dict[int, Heads] = field(default_factory=dict[int, Heads])

    def record(
        self,
        kernel: Any,
        implementation: str | None,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run a kernel and record its keys and values."""
        if id(module) in self.chosen:
            require_mask(implementation, mask, module)
            seen = in_sight(query, key, mask, _is_causal(implementation, module, kwargs))
            real = None if seen is None else seen.any(2, keepdim=True)
            self.heads[id(module)] = key.detach(), value.detach(), real
        return kernel(module, query, key, value, mask, *args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Joined:
    """Runs attention kernels on the keys and values of two runs."""

    heads: dict[int, Heads]
    bias: float

    def attend(
        self,
        kernel: Any,
        implementation: str | None,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run a kernel with the source's keys before its own."""
        if id(module) not in self.heads:
            return kernel(module, query, key, value, mask, *args, **kwargs)
        require_mask(implementation, mask, module)
        first, second, real = self.heads[id(module)]
        if len(first) != len(key):
            raise ShapeError(
                f"joined_attention: expected {len(first)} examples, like the source, got "
                f"{len(key)}."
            )
        seen = in_sight(query, key, mask, _is_causal(implementation, module, kwargs))
        shape = (len(query), 1, query.shape[2])
        own = self._added(seen, 0.0, query, (*shape, key.shape[2]))
        brought = self._added(real, self.bias, query, (*shape, first.shape[2]))
        if mask is not None and mask.dtype != torch.bool:
            own = mask.expand(*shape[:1], mask.shape[1], *mask.shape[2:])
            brought = brought.expand(-1, mask.shape[1], -1, -1)
        joint = torch.cat([brought, own], 3)
        keys, values = torch.cat([first, key], 2), torch.cat([second, value], 2)
        return kernel(module, query, keys, values, joint, *args, **kwargs | {"is_causal": False})

    def _added(
        self, seen: Tensor | None, bias: float, query: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        """Return the term added to scores: a bias for visible keys, else the lowest number."""
        least = torch.finfo(query.dtype).min
        if seen is None:
            return query.new_full(shape, bias)
        return query.new_full(shape, bias).masked_fill(~seen[..., : shape[-1]], least)


def _is_causal(implementation: str | None, module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a kernel without a mask is causal."""
    if implementation == EXPLICIT:
        return False
    asked = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)
