"""The feature axis of states in a running forward pass, found by probe passes.

For states whose sizes and classes leave it open, such as a map as wide as its channels. A copy that
shares the weights runs on the first rows, and on images of twice the size: axes that follow them
hold no features.
"""

import threading
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.running import no_calls
from sonde.tap.model.axes import Axes, find_axes, guess_axes
from sonde.tap.model.influence import Influence
from sonde.tap.model.probe import Probe, probe
from sonde.tap.model.seeding import gpus_of
from sonde.tap.model.time_first import twin_of


@dataclass(frozen=True, eq=False)
class _Shown:
    """The probe of one model, and the axes of its sites found so far."""

    probe: Probe
    axes: dict[tuple[str, str, str | None], Axes | None] = field(default_factory=dict)


_SHOWN: "weakref.WeakKeyDictionary[nn.Module, _Shown | None]" = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()
_RUNS: ContextVar[bool] = ContextVar("sonde_shows_axes", default=False)


def axes_here(
    x: Tensor,
    module: nn.Module,
    root: nn.Module,
    given: tuple[tuple[Any, ...], Mapping[str, Any]] | None,
    axis: int | None = None,
    port: str = "out",
    key: str | None = None,
) -> Axes:
    """Return the axes of states from sizes and classes, or else from probe passes.

    Parameters
    ----------
    x : Tensor
        Rows first.
    module, root : nn.Module
    given : (tuple, mapping) or None
        What ``root`` was called with; None if that is not known.
    axis : int, optional
        Of the features, if somebody named it.
    port, key
        Where at the module the states are.

    Raises
    ------
    SiteError
        If nothing tells.
    """
    try:
        return guess_axes(x, module, root, axis)
    except SiteError:
        known_axis = None if given is None else shown_axis(x, module, root, *given, port, key)
        if known_axis is None:
            raise
        return guess_axes(x, module, root, known_axis)


def shown_axis(
    x: Tensor,
    module: nn.Module,
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    port: str = "out",
    key: str | None = None,
    without: type | None = None,
) -> int | None:
    """Return the feature axis of states, rows first, or None if unknown.

    One probe for each model; it is not made while it runs, nor in compiled code. Hooks of the class
    ``without`` do not run in it.
    """
    if torch.compiler.is_compiling() or _RUNS.get():
        return None
    token = _RUNS.set(True)
    try:
        with _LOCK:
            given = args, dict(kwargs)
            axes = _axes(len(x), module, root, given, (port, key), without)
    finally:
        _RUNS.reset(token)
    if axes is None or len(axes.words) != x.ndim or axes.words[0] != "row":
        return None
    return axes.words.index("dim") if "dim" in axes.words else None


def _axes(
    n: int,
    module: nn.Module,
    root: nn.Module,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    at: tuple[str, str | None],
    without: type | None,
) -> Axes | None:
    path = ModuleNames(root).canonical.get(id(module))
    if path is None:
        return None
    place = path, *at
    seen = _SHOWN.get(root)
    if root in _SHOWN and (seen is None or place in seen.axes):
        return None if seen is None else seen.axes[place]
    try:
        twin = _unhooked(twin_of(root).eval(), without)
        model = Model(twin, config=twin.__dict__.get("config"))
        batch = CallArguments(twin, *given).inputs(n, None)
        with torch.random.fork_rng(devices=gpus_of(root)), torch.no_grad(), no_calls():
            if root not in _SHOWN:
                _SHOWN[root] = _Shown(probe(model, batch))
            shown = _SHOWN[root]
            assert shown is not None
            axes = find_axes(shown.probe, path, 0, *at, None, Influence(model, batch))
    except Exception:  # whatever a model raises on two or three rows, or another size
        shown, axes = _SHOWN.setdefault(root, None), None
    if shown is not None:
        shown.axes[place] = axes
    return axes


def _unhooked(module: nn.Module, kind: type | None) -> nn.Module:
    """Remove the hooks of a class from a model, and return the model."""
    if kind is None:
        return module
    for part in module.modules():
        for number in [n for n, hook in part._forward_hooks.items() if isinstance(hook, kind)]:
            del part._forward_hooks[number]
    return module
