"""Layers inside attentions: run on the queries and the heads of a module's own attention."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError, StateError
from sonde.layers.conditions import ConditionedLayer
from sonde.layers.layer import Layer
from sonde.tap.attention.opening import watch_call
from sonde.tap.hooks.port_view import ALL


class _Ports:
    """The queries and heads of one call."""

    def __init__(self, layer: ConditionedLayer, key: str) -> None:
        self.layer, self.key, self.has_run = layer, key, False
        self.queries: list[Tensor] = []

    def keep(self, view: Any) -> None:
        self.queries.append(view.x)

    def add(self, view: Any) -> Any:
        if not self.queries:
            raise SiteError(
                f"inserted: {self.key} shows its heads, but no queries. Choose "
                "nn.MultiheadAttention, an attention of transformers, or a module that calls "
                "scaled_dot_product_attention."
            )
        self.has_run = True
        heads, queries = view.x.transpose(1, 2), self.queries.pop().transpose(1, 2)
        new = self.layer(heads, queries)
        return None if new is heads else {ALL: new.transpose(1, 2).flatten(2)}


class _OfThread(threading.local):
    """The watches of calls that run in a thread, by id of their hook."""

    def __init__(self) -> None:
        self.running: dict[int, list[tuple[_Ports, Callable[[], Any]]]] = {}


_THREAD = _OfThread()


class AttentionCall:
    """Hooks before and after an attention, which run a layer on its queries and heads.

    Parameters
    ----------
    name : str
        Of the layer in the attention.
    key : str
        The site, for messages.
    """

    owner: None = None
    without_cache: tuple[nn.Module, ...] = ()

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key

    def layer(self, site: nn.Module) -> ConditionedLayer | None:
        """Return the layer, or None if it was removed."""
        part = getattr(site, self.name, None)
        return part if isinstance(part, ConditionedLayer) else None

    def before(self, site: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Watch the attention's queries and heads in this call, if the layer adds to it."""
        layer = self.layer(site)
        if layer is None or not layer.is_active:
            return
        if torch._C._current_graph_task_id() != -1:
            raise StateError(
                f"inserted: the attention {self.key} is recomputed in the backward pass "
                f"(torch.utils.checkpoint), where {type(layer).__name__} cannot run. Train "
                "without checkpointing of this module."
            )
        ports = _Ports(layer, self.key)
        hooks = {"queries": ports.keep, "heads": ports.add}
        close = watch_call(site, args, kwargs, hooks)
        _THREAD.running.setdefault(id(self), []).append((ports, close))

    def __call__(self, site: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with what the layer added, or None if it added nothing."""
        running = _THREAD.running.get(id(self))
        if not running:
            return None
        ports, close = running.pop()
        result = close()
        if output is not None and not ports.has_run:
            raise SiteError(
                f"inserted: {self.key} ({type(site).__name__}) computed no attention whose heads "
                "can be seen. Choose nn.MultiheadAttention, an attention of transformers, or a "
                "module that calls scaled_dot_product_attention."
            )
        return result


def insert_in_attention(site: nn.Module, name: str, layer: Layer, path: str) -> None:
    """Add a layer to an attention, as a part of it, with the hooks that run it."""
    like = next((p for p in site.parameters() if p.is_floating_point()), None)
    layer = layer if like is None else layer.to(like.device, like.dtype)
    site.add_module(name, layer.train(site.training))
    call = AttentionCall(name, path)
    site.register_forward_pre_hook(call.before, with_kwargs=True)
    site.register_forward_hook(call, always_call=True)


def forget_attention_call(site: nn.Module, call: AttentionCall) -> None:
    """Remove the hook before an attention; the hook after it is the call itself."""
    keys = [key for key, one in site._forward_pre_hooks.items() if one == call.before]
    for key in keys:
        del site._forward_pre_hooks[key]
