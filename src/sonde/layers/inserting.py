"""Put layers at sites of a model that exists, and take them out again."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.layers._site_call import SiteCall, StateAxes
from sonde.layers.layer import Layer
from sonde.tap.hooks.call import encoder_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.running import ignore_calls, watch_calls
from sonde.tap.model.sites import places_of
from sonde.weights.live import module_of, with_tensors

_log = logging.getLogger("sonde")

NAME = "inserted"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def inserted(model: Model | nn.Module, layers: Mapping[str, Layer]) -> Any:
    """Return a copy of a model with layers behind some of its modules.

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
        type, and is part of the copy: train it there.

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
    _check(module_of(model), layers)
    new = with_tensors(module_of(model), {})
    _put(new, layers)
    return Model(**{**vars(model), "module": new}) if isinstance(model, Model) else new


def insert_in_place(module: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Put layers behind some modules of this model itself, as ``inserted`` does in a copy."""
    _check(module, layers)
    _put(module, layers)


def _put(new: nn.Module, layers: Mapping[str, Layer]) -> None:
    names = ModuleNames(new)
    paths = {_path(pattern, names): layer for pattern, layer in layers.items()}
    axes = {path: StateAxes(path, names.modules) for path in paths}
    like = next((p for p in new.parameters() if p.is_floating_point()), None)
    for path, layer in paths.items():
        site = names.modules[path]
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
                "inserted: %s at %s looks at other tokens, so generate() of this model runs "
                "without a key-value cache, which assisted decoding needs.",
                type(layer).__name__, path,
            )  # fmt: skip


def _without_cache(around: Sequence[nn.Module]) -> list[nn.Module]:
    """Let generation run without a cache, and return the models where this is new.

    The cache holds what attention made of earlier tokens, not what an inserted layer would have to
    look at. An encoder reads its whole text once, whatever the decoder's cache holds.
    """
    if any(encoder_of(part) in around for part in around):
        return []
    found: list[nn.Module] = []
    for part in around:
        settings = part.__dict__.get("generation_config")
        if settings is not None and settings.use_cache is not False:
            settings.use_cache = False
            found.append(part)
    return found


def _around(path: str, names: ModuleNames) -> list[nn.Module]:
    """Return the modules that run around a site, the site itself among them, outermost first."""
    parts = path.split(".") if path else []
    found = [names.modules[".".join(parts[:i])] for i in range(len(parts) + 1)]
    return [part for part in found if not isinstance(part, nn.ModuleList | nn.ModuleDict)]


def removed(model: Model | nn.Module) -> Any:
    """Return a copy of a model without the layers that ``inserted`` put there.

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
            f"removed: the model changed since: {lost[0]} has lost its layer or its hook. Go on "
            "from the model without layers."
        )
    if not calls:
        raise InputError("removed: expected a model with inserted layers, got none in it.")
    for _, site, call in calls:
        delattr(call.owner or site, call.name)
        for part in call.without_cache:
            cast(Any, part).generation_config.use_cache = True
        _forget(site._forward_hooks, call)
    for part in new.modules():
        ignore_calls(part)
    return Model(**{**vars(model), "module": new}) if isinstance(model, Model) else new


def inserted_layers(model: Model | nn.Module) -> dict[str, Layer]:
    """Return the layers that were inserted in a model, by site."""
    found = ((path, call.layer(site)) for path, site, call in _calls(module_of(model)))
    return {path: layer for path, layer in found if layer is not None}


def _calls(module: nn.Module) -> list[tuple[str, nn.Module, SiteCall]]:
    found = ((m, hook) for m in module.modules() for hook in m._forward_hooks.values())
    return [(hook.key, m, hook) for m, hook in found if isinstance(hook, SiteCall)]


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
    names, known = ModuleNames(old), inserted_layers(old)
    met = {id(layer) for layer in known.values()}
    for pattern, layer in layers.items():
        path = _path(pattern, names)
        if not isinstance(layer, Layer) or not layer.insertable or len(layer.layout) != 1:
            raise InputError(
                f"inserted: expected a layer that keeps the shape and starts as the identity, got "
                f"{type(layer).__name__} for {path}. Use it alone."
            )
        if path in known or id(layer) in met:
            what = f"a layer at {path}" if path in known else f"this {type(layer).__name__}"
            raise InputError(
                f"inserted: {what} was inserted before. Take it out with sonde.removed(model), or "
                "make a new layer for another site."
            )
        known[path] = layer
        met.add(id(layer))


def _path(pattern: str, names: ModuleNames) -> str:
    """Return the path of the module that a site names."""
    sites = places_of(pattern, names) if pattern else [Site("")]
    found = [site.path for site in sites if str(site) == str(Site(site.path))]
    if len(sites) != 1 or not found:
        told = ", ".join(map(str, sites))
        raise SiteError(f"inserted: expected the path of one module, got {pattern!r}: {told}.")
    module, above = names.modules[found[0]], found[0].rpartition(".")[0]
    places = [name for name, part in names.modules.items() if part is module]
    if len(places) > 1:
        raise SiteError(
            f"inserted: {' and '.join(places)} are one module: a layer there would run at both. "
            "Choose a module around one of them."
        )
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise SiteError(f"inserted: {found[0]} is a list that is never called. Choose a member.")
    if found[0] and isinstance(names.modules[above], nn.MultiheadAttention):
        raise SiteError(
            f"inserted: the kernel of {above} uses the weights of {found[0]} and never calls it. "
            f"Choose {above}."
        )
    return found[0]


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
        raise SiteError(f"inserted: expected a module with parts at {path!r}, got an empty one.")
    return inside[-1], f"{NAME}_{path.replace('.', '_') or 'root'}"
