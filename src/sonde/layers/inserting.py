"""Insert layers at sites of an existing model, and remove them again."""

import inspect
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.core.token_masks import MaskMeaning
from sonde.layers._in_attention import (
    AttentionCall,
    forget_attention_call,
    insert_in_attention,
)
from sonde.layers._state_axes import StateAxes
from sonde.layers.layer import Layer
from sonde.tap.attention.places import attention_at
from sonde.tap.hooks.call import encoder_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.running import (
    RunningCall,
    cached_tokens,
    ignore_calls,
    mask_in,
    running_calls,
    watch_calls,
)
from sonde.tap.hooks.stack import in_backward
from sonde.tap.model.shown_axes import shown_axis
from sonde.tap.model.sites import places_of
from sonde.tap.model.time_first import in_trial, known_time_first, unknown_order
from sonde.tap.rows.nested import nested_like, padded
from sonde.weights.live import module_of, require_values, with_tensors

_MASKS: "weakref.WeakKeyDictionary[SiteCall, dict[int, tuple[StorageWeakRef, Tensor | None]]]" = (
    weakref.WeakKeyDictionary()
)
"""Masks of forwards whose graph lives, by the memory of what the modules around were given."""


_LOCK = threading.Lock()


class SiteCall:
    """Hook after a site, which runs the registered layer.

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
        """Return the layer, or None if it was removed from its owner."""
        part = getattr(self.owner or site, self.name, None)
        return part if isinstance(part, Layer) else None

    def _layer_here(self, site: nn.Module, calls: tuple[RunningCall, ...]) -> Layer:
        """Return the layer to run; in a replica of ``nn.DataParallel``, the replica's layer."""
        owner = self.owner or site
        if owner is not site and "_is_replica" in site.__dict__:
            parts = (*(call.module for call in reversed(calls)), *site.modules())
            owner = next(part for part in parts if self.name in part._modules)
        return getattr(owner, self.name)

    def __call__(self, site: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with its states replaced by the layer's output."""
        if in_trial():  # which asks for the order that this layer would ask for; sizes stay
            return output
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
        axis, wanted = self._features(x, site, layer, calls), layer.features_axis % x.ndim
        x = x if axis == wanted else x.movedim(axis, wanted)
        mask = self._mask(x, calls) if self.takes_mask and x.ndim == 3 else None
        new = self._run(layer, x, mask)
        new = new if axis == wanted else new.movedim(wanted, axis)
        return replaced(output, leaf, new.transpose(0, 1) if time_first else new)

    def _features(
        self, x: Tensor, site: nn.Module, layer: Layer, calls: tuple[RunningCall, ...]
    ) -> int:
        """Return the features axis: by classes and sizes, or else by probe passes."""
        try:
            return self.axes.features_of(x, layer, self.key)
        except SiteError:
            around = calls[0] if calls else None
            if around is None:
                raise
            root, named = around.module, around.named
            axis = shown_axis(x, site, root, (), named, without=SiteCall)
            if axis is None or x.shape[axis] != getattr(layer, "dim", None):
                raise
            return axis

    def _run(self, layer: Layer, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or not self.takes_mask:
            return layer(x)
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return layer(x)
        return layer(x, mask=mask.to(x.device))

    def _require_whole(self, layer: Layer, x: Tensor, calls: tuple[RunningCall, ...]) -> None:
        """Raise if a cache holds tokens that the layer would need."""
        past = cached_tokens(calls)
        if past and layer.mixes_positions:
            raise InputError(
                f"{type(layer).__name__}: expected all tokens of the texts, got a call that "
                f"continues after {past} cached tokens: the layer at {self.key} would not see "
                "the cached tokens. Generate with use_cache=False, which is this model's "
                "default."
            )

    def _mask(self, x: Tensor, calls: tuple[RunningCall, ...]) -> Tensor | None:
        """Return the mask of real tokens; recomputed forward passes reuse the earlier mask."""
        if torch.compiler.is_compiling():
            return mask_in(calls, x.shape[0], x.shape[1], self.meaning)
        masks, keys = _MASKS.get(self, {}), _storages(calls)
        again = in_backward()
        if again and (key := next((k for k in keys if k.cdata in masks), None)) is not None:
            return masks[key.cdata][1]
        own_mask = mask_in(calls, x.shape[0], x.shape[1], self.meaning)
        if again and own_mask is None and any(mask is not None for _, mask in masks.values()):
            raise StateError(
                f"inserted: the layer at {self.key} is recomputed in the backward pass "
                "(torch.utils.checkpoint), where the mask of the tokens is not known. Give the "
                "mask to the part of the model that is checkpointed."
            )
        if not again and (masks or own_mask is not None):
            with _LOCK:
                masks = _MASKS.get(self, {})
                kept = {k: v for k, v in masks.items() if not v[0].expired()}
                _MASKS[self] = kept | {key.cdata: (key, own_mask) for key in keys}
        return own_mask

    def _is_time_first(
        self, x: Tensor, site: nn.Module, layer: Layer, calls: tuple[RunningCall, ...]
    ) -> bool:
        """Return whether states are (time, row, dim), by flags or by their observed shapes.

        Raises
        ------
        SiteError
            If the layer looks at other tokens, and nothing tells.
        """
        root, named = (calls[0].module, calls[0].named) if calls else (site, {})
        is_first = known_time_first(x, site, root, named)
        if is_first is None and self.axes.has_time_first and layer.mixes_positions:
            raise unknown_order(f"inserted: {self.key}", x)
        return bool(is_first)


def _longest(x: Tensor) -> tuple[int, int]:
    """Return the number of rows of a nested tensor, and of tokens in its longest row."""
    lengths = [len(part) for part in x.unbind()]
    return len(lengths), max(lengths)


def _storages(calls: tuple[RunningCall, ...]) -> list[StorageWeakRef]:
    """Return the storages of the states that running calls received."""
    given = [find(tuple(call.named.values()), None) for call in calls]
    with suppress(NotImplementedError):  # inside torch.func tensors have no memory
        return [StorageWeakRef(x.untyped_storage()) for x in given if x is not None]
    return []


_log = logging.getLogger("sonde")

NAME = "inserted"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def inserted(model: Model | nn.Module, layers: Mapping[str, Layer]) -> Any:
    """Return a copy of a model with layers after some of its modules.

    The copy shares the memory of all weights with the model: training one trains both, so freeze
    the weights that must stay (``requires_grad_(False)``). The model's keys in the state dict keep
    their names. Keys of a layer begin with ``SITE.inserted``; at a ``Sequential`` they begin with
    the module around it. ``parameters()``, a deepcopy, ``state_dict`` and ``torch.compile`` know
    the layers. A module that runs twice in a forward runs its layer twice. A layer that takes a
    mask gets the mask of the innermost call around its site that has one, by position or by name:
    ``attention_mask``, ``src_key_padding_mask``, ``mask``; layers in a decoder get the decoder's.
    States are given to a layer rows first and features where its layout has them. ``generate`` of
    a model whose layer looks at other tokens runs without a key-value cache.

    Parameters
    ----------
    model : Model or nn.Module
        Stays as it is.
    layers : mapping of str to Layer
        By site: the path of a module, or ``blocks.3``. Each is moved to the model's device and
        type, and is part of the copy: train it there. ``DecoupledCrossAttention`` runs inside the
        attention at its path; the source is given with ``sonde.layers.conditioned``.

    Raises
    ------
    SiteError
        If a site is no module, is never called as a module, or stands at two places of the model.
    InputError
        If a layer changes the shape, or a site or a layer is used twice.

    Examples
    --------
    >>> import sonde, torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> new = sonde.inserted(net, {"0": sonde.layers.Adapter(4, 2)})
    >>> x = torch.ones(1, 3)
    >>> torch.equal(new(x), net(x)), len(list(new.parameters())), len(list(net.parameters()))
    (True, 8, 4)
    """
    require_values("inserted", module_of(model))
    _check(module_of(model), layers)
    new = with_tensors(module_of(model), {})
    _put(new, layers)
    return Model(**{**vars(model), "module": new}) if isinstance(model, Model) else new


def insert_in_place(module: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Insert layers after some modules of the model itself, as ``inserted`` does in a copy."""
    _check(module, layers)
    _put(module, layers)


def _put(new: nn.Module, layers: Mapping[str, Layer]) -> None:
    names = ModuleNames(new)
    paths = {_place(pattern, layer, names): layer for pattern, layer in layers.items()}
    axes = {path: StateAxes(path, names.modules) for path in paths}
    like = next((p for p in new.parameters() if p.is_floating_point()), None)
    for path, layer in paths.items():
        site = names.modules[path]
        if layer.inside_attention:
            insert_in_attention(site, NAME, layer, path)
            continue
        owner, name = _owner(path, names)
        layer = layer if like is None else layer.to(like.device, like.dtype)
        owner.add_module(name, layer.train(site.training))
        takes = "mask" in inspect.signature(layer.forward).parameters
        holder = None if owner is site else owner
        around = _around(path, names)
        without = _without_cache(around) if layer.mixes_positions else []
        call = SiteCall(name, holder, path, axes[path], takes, without)
        site.register_forward_hook(call)
        for part in around:
            watch_calls(part)
        if without:
            _log.warning(
                "inserted: %s at %s attends to other tokens, so generate() of this model "
                "runs without a key-value cache, and assisted decoding, which needs the "
                "cache, is not possible.",
                type(layer).__name__, path,
            )  # fmt: skip


def _without_cache(around: Sequence[nn.Module]) -> list[nn.Module]:
    """Disable the generation cache, and return the models where it was enabled.

    The cache holds what attention made of earlier tokens, not what an inserted layer would have to
    look at. An encoder reads its whole text once, whatever the decoder's cache holds.
    """
    if any(encoder_of(part) in around for part in around):
        return []
    parts_without: list[nn.Module] = []
    for part in around:
        settings = part.__dict__.get("generation_config")
        if settings is not None and settings.use_cache is not False:
            settings.use_cache = False
            parts_without.append(part)
    return parts_without


def _around(path: str, names: ModuleNames) -> list[nn.Module]:
    """Return the modules that run around a site, including the site, outermost first."""
    parts = path.split(".") if path else []
    around = [names.modules[".".join(parts[:i])] for i in range(len(parts) + 1)]
    return [part for part in around if not isinstance(part, nn.ModuleList | nn.ModuleDict)]


def removed(model: Model | nn.Module) -> Any:
    """Return a copy of a model without the layers of ``inserted``.

    The copy shares the memory of all weights with the model.

    Parameters
    ----------
    model : Model or nn.Module
        Stays as it is.

    Raises
    ------
    InputError
        If no layer was inserted, or all were removed.
    StateError
        If the model changed since: a layer or its hook is no longer where it was put.
    """
    new = with_tensors(module_of(model), {})
    calls = _calls(new)
    kept = {id(call.layer(site)) for _, site, call in calls}
    lost = [n for n, part in new.named_modules() if _is_ours(n, part) and id(part) not in kept]
    lost += [path for path, site, call in calls if call.layer(site) is None]
    if lost:
        raise StateError(
            f"removed: the model was changed after the layers were inserted: {lost[0]} has "
            "lost its layer or its hook. Start again from the model without layers."
        )
    if not calls:
        raise InputError(
            "removed: expected a model with inserted layers, got a model without inserted layers."
        )
    for _, site, call in calls:
        delattr(call.owner or site, call.name)
        for part in call.without_cache:
            cast(Any, part).generation_config.use_cache = True
        _forget(site._forward_hooks, call)
        if isinstance(call, AttentionCall):
            forget_attention_call(site, call)
    for part in new.modules():
        ignore_calls(part)
    return Model(**{**vars(model), "module": new}) if isinstance(model, Model) else new


def inserted_layers(model: Model | nn.Module) -> dict[str, Layer]:
    """Return the layers that were inserted in a model, by site.

    Parameters
    ----------
    model : Model or nn.Module
        A model in which layers may be inserted.
    """
    by_path = ((path, call.layer(site)) for path, site, call in _calls(module_of(model)))
    return {path: layer for path, layer in by_path if layer is not None}


def _calls(module: nn.Module) -> list[tuple[str, nn.Module, SiteCall | AttentionCall]]:
    hooks = ((m, hook) for m in module.modules() for hook in m._forward_hooks.values())
    return [(hook.key, m, hook) for m, hook in hooks if isinstance(hook, SiteCall | AttentionCall)]


def _forget(hooks: Any, hook: object) -> int:
    key = next(key for key, one in hooks.items() if one is hook)
    del hooks[key]
    return key


def _is_ours(name: str, part: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    return isinstance(part, Layer) and (last == NAME or last.startswith(NAME + "_"))


def _check(old: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Raise if a layer cannot be inserted, before anything is copied."""
    if not layers:
        raise InputError("inserted: expected at least one layer and its site, got none.")
    names, inserted_before = ModuleNames(old), inserted_layers(old)
    met = {id(layer) for layer in inserted_before.values()}
    for pattern, layer in layers.items():
        path = _place(pattern, layer, names)
        fits = isinstance(layer, Layer) and layer.insertable and len(layer.layout) == 1
        if not fits and not (isinstance(layer, Layer) and layer.inside_attention):
            raise InputError(
                "inserted: expected a layer that keeps the shape and starts as the identity, "
                f"got {type(layer).__name__} for {path}. Call this layer in your own code "
                "instead of inserting it."
            )
        if path in inserted_before or id(layer) in met:
            what = (
                f"a layer at {path}" if path in inserted_before else f"this {type(layer).__name__}"
            )
            raise InputError(
                f"inserted: {what} is already inserted. Remove it with sonde.removed(model), "
                "or create a new layer for another site."
            )
        inserted_before[path] = layer
        met.add(id(layer))


def _place(pattern: str, layer: Layer, names: ModuleNames) -> str:
    """Return the path of a site's module, or of the attention in it for a layer inside one."""
    path = _path(pattern, names)
    inside = isinstance(layer, Layer) and layer.inside_attention
    return attention_at(path, "heads", names) if inside else path


def _path(pattern: str, names: ModuleNames) -> str:
    """Return the path of a site's module."""
    sites = places_of(pattern, names) if pattern else [Site("")]
    paths = [site.path for site in sites if str(site) == str(Site(site.path))]
    if len(sites) != 1 or not paths:
        listed = ", ".join(map(str, sites))
        raise SiteError(f"inserted: expected the path of one module, got {pattern!r}: {listed}.")
    module, above = names.modules[paths[0]], paths[0].rpartition(".")[0]
    places = [name for name, part in names.modules.items() if part is module]
    if len(places) > 1:
        raise SiteError(
            f"inserted: {' and '.join(places)} are the same module, so an inserted layer "
            "would run at both sites. Choose a module that contains only one of them."
        )
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise SiteError(
            f"inserted: {paths[0]} is a list of modules, which is never called. Choose a "
            "module of the list."
        )
    if paths[0] and isinstance(names.modules[above], nn.MultiheadAttention):
        raise SiteError(
            f"inserted: the kernel of {above} uses the weights of {paths[0]} and never calls it. "
            f"Choose {above}."
        )
    return paths[0]


def _owner(path: str, names: ModuleNames) -> tuple[nn.Module, str]:
    """Return the module where a layer is registered, and its name there.

    A container would run the layer as one more child. The layer goes to the nearest module around
    it that is no container, else to the last module inside it that is no container.
    """
    site = names.modules[path]
    if not isinstance(site, CONTAINERS):
        return site, NAME
    around = path
    while around:
        around = around.rpartition(".")[0]
        if not isinstance(names.modules[around], CONTAINERS):
            return names.modules[around], f"{NAME}_{path.replace('.', '_')}"
    inside = [part for part in site.modules() if not isinstance(part, (*CONTAINERS, Layer))]
    if not inside:
        raise SiteError(
            f"inserted: expected a container with modules at {path!r}, got an empty container."
        )
    return inside[-1], f"{NAME}_{path.replace('.', '_') or 'root'}"
