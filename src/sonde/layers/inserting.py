"""Put layers at sites of a model that exists, and take them out again."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.layers.layer import ORDERED, Layer
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.model.sites import places_of
from sonde.weights.live import module_of, with_tensors

NAME = "inserted"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Masks:
    """Hook before the model: it keeps the ``attention_mask`` for layers that take a mask."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the mask of this call."""
        given = named.get("attention_mask")
        self.mask = given.bool() if isinstance(given, Tensor) and given.ndim == 2 else None

    def of(self, x: Tensor, layer: Layer) -> dict[str, Tensor]:
        """Return the mask as the layer takes it.

        Raises
        ------
        InputError
            In a step of generation with a cache: the layer would not see the earlier tokens.
        """
        if self.mask is None:
            return {}
        if ORDERED & {*layer.layout[0].split()} and self.mask.shape[1] > x.shape[1]:
            raise InputError(
                f"{type(layer).__name__}: expected all {self.mask.shape[1]} tokens of the texts, "
                f"got {x.shape[1]}: a cache holds the others. Generate with use_cache=False."
            )
        return {"mask": self.mask}


class Call:
    """Hook behind a site: it runs the layer that is registered at an owner.

    The layer is found by its name, so that a deepcopy of the model calls its own copy.
    """

    def __init__(self, name: str, owner: nn.Module | None, masks: Masks | None, key: str) -> None:
        self.name, self.owner, self.masks, self.key = name, owner, masks, key

    def layer(self, site: nn.Module) -> Layer | None:
        """Return the layer, or None if it is no longer where it was put."""
        found = getattr(self.owner or site, self.name, None)
        return found if isinstance(found, Layer) else None

    def __call__(self, site: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with the layer's states in it."""
        layer, x = getattr(self.owner or site, self.name), find(output, None)
        if x is None:
            raise SiteError(f"inserted: {self.key} gives no states, got {type(output).__name__}.")
        known = {} if self.masks is None else self.masks.of(x, layer)
        return replaced(output, x, layer(x, **known))


def inserted(model: Model | nn.Module, layers: Mapping[str, Layer]) -> Any:
    """Return a copy of a model with layers behind some of its modules.

    The copy shares the memory of all weights with the model: training one trains both, so freeze
    the weights that must stay (``requires_grad_(False)``). The model's keys in the state dict keep
    their names. Keys of a layer begin with ``SITE.inserted``; at a ``Sequential`` they begin with
    the module around it. ``parameters()``, a deepcopy, ``state_dict`` and ``torch.compile`` know
    the layers. A module that runs twice in a forward runs its layer twice. A layer that takes a
    mask gets the model's ``attention_mask``.

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
    masks = next((h for h in new._forward_pre_hooks.values() if isinstance(h, Masks)), None)
    for pattern, layer in layers.items():
        path = _path(pattern, names)
        site = names.modules[path]
        owner, name = _owner(path, names)
        takes = "mask" in inspect.signature(layer.forward).parameters
        if takes and masks is None:
            masks = Masks()
            new.register_forward_pre_hook(masks, with_kwargs=True)
        like = next((p for p in new.parameters() if p.is_floating_point()), None)
        layer = layer if like is None else layer.to(like.device, like.dtype)
        owner.add_module(name, layer.train(site.training))
        holder = None if owner is site else owner
        site.register_forward_hook(Call(name, holder, masks if takes else None, path))


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
        _forget(site._forward_hooks, call)
    for hook in [h for h in new._forward_pre_hooks.values() if isinstance(h, Masks)]:
        key = _forget(new._forward_pre_hooks, hook)
        new._forward_pre_hooks_with_kwargs.pop(key, None)
    return Model(**{**vars(model), "module": new}) if isinstance(model, Model) else new


def inserted_layers(model: Model | nn.Module) -> dict[str, Layer]:
    """Return the layers that were inserted in a model, by site."""
    found = ((path, call.layer(site)) for path, site, call in _calls(module_of(model)))
    return {path: layer for path, layer in found if layer is not None}


def _calls(module: nn.Module) -> list[tuple[str, nn.Module, Call]]:
    named = module.named_modules()
    return [
        (c.key, m, c) for _, m in named for c in m._forward_hooks.values() if isinstance(c, Call)
    ]


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
