"""How an inserted layer runs behind its site: on which axes, with which mask, on whole texts."""

import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.token_masks import MaskMeaning
from sonde.layers.layer import Layer
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.running import (
    RunningCall,
    cached_tokens,
    mask_in,
    running_calls,
)
from sonde.tap.hooks.stack import in_backward
from sonde.tap.model.features import by_class, by_classes, by_kind_of_pool
from sonde.tap.model.time_first import has_time_first, known_time_first, unknown_order
from sonde.tap.rows.nested import nested_like, padded

_MASKS: "weakref.WeakKeyDictionary[SiteCall, dict[int, tuple[StorageWeakRef, Tensor | None]]]" = (
    weakref.WeakKeyDictionary()
)
"""Masks of forwards whose graph lives, by the memory of what the modules around were given."""


_LOCK = threading.Lock()


class StateAxes:
    """Which axes of a site's states hold features and rows, as far as the classes tell.

    Parameters
    ----------
    path : str
    modules : mapping of str to nn.Module
        Of the model before layers are put in.
    """

    def __init__(self, path: str, modules: Mapping[str, nn.Module]) -> None:
        site, parts = modules[path], path.split(".")
        around = [modules[".".join(parts[:i])] for i in range(len(parts), -1, -1)]
        self.has_time_first = any(has_time_first(module) for module in modules.values())
        self.features: dict[int, int] = {}
        self.sure = set[int]()
        for n in (3, 4, 5):
            own = None if site._modules else by_class(site, n) or by_kind_of_pool(site, n)
            spoken = (by_classes(part, n) for part in around)
            told = next((axes for axes in spoken if axes), set[int]()) if own is None else {own}
            if own is not None:
                self.sure.add(n)
            if len(told) == 1:
                self.features[n] = told.pop()

    def features_of(self, x: Tensor, layer: Layer, key: str) -> int:
        """Return the axis of the features of states with three axes or more.

        Raises
        ------
        SiteError
            If several axes have the width of the layer, and no class tells.
        """
        dim, axis = getattr(layer, "dim", None), self.features.get(x.ndim)
        if axis is not None and (x.ndim in self.sure or dim is None or x.shape[axis] == dim):
            return axis
        wide = [i for i in range(1, x.ndim) if x.shape[i] == dim]
        if len(wide) > 1:
            raise SiteError(
                f"inserted: expected one axis of {dim} features at {key}, got states "
                f"{tuple(x.shape)}: which of them holds the features is not known. Choose a site "
                "whose module is a layer of torch, such as a convolution or a linear map."
            )
        return wide[0] if wide else layer.features_axis % x.ndim


class SiteCall:
    """Hook behind a site: it runs the layer that is registered at an owner.

    The layer is found by its name, so that a deepcopy of the model calls its own copy.

    Parameters
    ----------
    name : str
        Of the layer in its owner.
    owner : nn.Module or None
        None if the site itself owns the layer.
    key : str
        The site, for messages.
    axes : StateAxes
    takes_mask : bool
    without_cache : list of nn.Module
        Models that generate without a cache since the layer is there.
    """

    def __init__(
        self,
        name: str,
        owner: nn.Module | None,
        key: str,
        axes: StateAxes,
        takes_mask: bool,
        without_cache: list[nn.Module],
    ) -> None:
        self.name, self.owner, self.key = name, owner, key
        self.axes, self.takes_mask = axes, takes_mask
        self.without_cache = without_cache
        self.meaning = MaskMeaning()

    def layer(self, site: nn.Module) -> Layer | None:
        """Return the layer, or None if it is no longer where it was put."""
        found = getattr(self.owner or site, self.name, None)
        return found if isinstance(found, Layer) else None

    def _layer_here(self, site: nn.Module, calls: tuple[RunningCall, ...]) -> Layer:
        """Return the layer to run: in a replica of ``nn.DataParallel`` the replica's own."""
        owner = self.owner or site
        if owner is not site and "_is_replica" in site.__dict__:
            parts = (*(call.module for call in reversed(calls)), *site.modules())
            owner = next(part for part in parts if self.name in part._modules)
        return getattr(owner, self.name)

    def __call__(self, site: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with the layer's states in it."""
        calls = running_calls()
        layer, leaf = self._layer_here(site, calls), find(output, None)
        if leaf is None:
            raise SiteError(f"inserted: {self.key} gives no states, got {type(output).__name__}.")
        if leaf.is_nested:
            mask = mask_in(calls, *_longest(leaf), self.meaning)
            x = padded(leaf, mask)
            return replaced(output, leaf, nested_like(leaf, self._run(layer, x, mask)))
        self._require_whole(layer, leaf, calls)
        if leaf.ndim < 3:
            return replaced(output, leaf, layer(leaf))
        time_first = leaf.ndim == 3 and self._is_time_first(leaf, site, layer, calls)
        x = leaf.transpose(0, 1) if time_first else leaf
        axis, wanted = self.axes.features_of(x, layer, self.key), layer.features_axis % x.ndim
        x = x if axis == wanted else x.movedim(axis, wanted)
        mask = self._mask(x, calls) if self.takes_mask and x.ndim == 3 else None
        new = self._run(layer, x, mask)
        new = new if axis == wanted else new.movedim(wanted, axis)
        return replaced(output, leaf, new.transpose(0, 1) if time_first else new)

    def _run(self, layer: Layer, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or not self.takes_mask:
            return layer(x)
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return layer(x)
        return layer(x, mask=mask.to(x.device))

    def _require_whole(self, layer: Layer, x: Tensor, calls: tuple[RunningCall, ...]) -> None:
        """Raise if a cache holds tokens that a layer would have to look at."""
        past = cached_tokens(calls)
        if past and layer.mixes_positions:
            raise InputError(
                f"{type(layer).__name__}: expected all tokens of the texts, got a call that goes "
                f"on from {past} tokens in a cache: the layer at {self.key} would not see them. "
                "Generate with use_cache=False, which is this model's default."
            )

    def _mask(self, x: Tensor, calls: tuple[RunningCall, ...]) -> Tensor | None:
        """Return which tokens are real; when a forward is run anew, what it was told before."""
        if torch.compiler.is_compiling():
            return mask_in(calls, x.shape[0], x.shape[1], self.meaning)
        known, keys = _MASKS.get(self, {}), _storages(calls)
        again = in_backward()
        if again and (key := next((k for k in keys if k.cdata in known), None)) is not None:
            return known[key.cdata][1]
        found = mask_in(calls, x.shape[0], x.shape[1], self.meaning)
        if again and found is None and any(mask is not None for _, mask in known.values()):
            raise StateError(
                f"inserted: the layer at {self.key} is run anew in the backward pass "
                "(torch.utils.checkpoint), where the mask of the tokens is not known. Give the "
                "mask to the part of the model that is checkpointed."
            )
        if not again and (known or found is not None):
            with _LOCK:
                known = _MASKS.get(self, {})
                kept = {k: v for k, v in known.items() if not v[0].expired()}
                _MASKS[self] = kept | {key.cdata: (key, found) for key in keys}
        return found

    def _is_time_first(
        self, x: Tensor, site: nn.Module, layer: Layer, calls: tuple[RunningCall, ...]
    ) -> bool:
        """Return whether states are (time, row, dim), by flags or by what forward passes show.

        Raises
        ------
        SiteError
            If the layer looks at other tokens, and nothing tells.
        """
        root, named = (calls[0].module, calls[0].named) if calls else (site, {})
        found = known_time_first(x, site, root, named)
        if found is None and self.axes.has_time_first and layer.mixes_positions:
            raise unknown_order(f"inserted: {self.key}", x)
        return bool(found)


def _longest(x: Tensor) -> tuple[int, int]:
    """Return how many rows a nested tensor has, and the tokens of the longest."""
    lengths = [len(part) for part in x.unbind()]
    return len(lengths), max(lengths)


def _storages(calls: tuple[RunningCall, ...]) -> list[StorageWeakRef]:
    """Return the memory of the states that each running call was given."""
    given = [find(tuple(call.named.values()), None) for call in calls]
    with suppress(NotImplementedError):  # inside torch.func tensors have no memory
        return [StorageWeakRef(x.untyped_storage()) for x in given if x is not None]
    return []
