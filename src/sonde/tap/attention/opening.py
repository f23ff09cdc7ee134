"""Hooks through which a session sees inside attention layers, and their removal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn

from sonde.tap.attention.functions import FunctionsWatched
from sonde.tap.attention.interface import hold_interface, release_interface, source_of
from sonde.tap.attention.multihead import observe
from sonde.tap.attention.places import asks_interface
from sonde.tap.attention.watching import AttentionWatch, PortHook, WatchedAttention, opened
from sonde.tap.hooks.inert import Hook

Wanted = Sequence[tuple[nn.Module, str, PortHook]]


def watch_attention(
    wanted: Wanted, *, edits: bool = False, here: bool = True
) -> Callable[[], AbstractContextManager[None]] | None:
    """Return a function that opens a context in which hooks at attention ports run.

    Parameters
    ----------
    wanted : sequence of (module, port, hook)
        ``hook(view)`` runs when the attention has made what is at the port, a ``PortView``; what it
        returns, if not None, replaces it. Without any, None is returned.
    edits : bool, default=False
        Whether the hooks change states; if so, they come before hooks that only read.
    here : bool, default=True
        Call them for the context that opens it alone.
    """
    return partial(_watched, wanted, edits, here) if wanted else None


@contextlib.contextmanager
def _watched(wanted: Wanted, edits: bool, here: bool) -> Iterator[None]:
    hooks: dict[tuple[int, str], list[PortHook]] = {}
    for module, port, hook in wanted:
        hooks.setdefault((id(module), port), []).append(hook)
    watch = AttentionWatch(hooks, edits, here)
    with contextlib.ExitStack() as stack:
        hold_interface()
        stack.callback(release_interface)
        stack.enter_context(opened(watch))
        stack.callback(watch.leave)
        for module in {id(m): m for m, _, _ in wanted}.values():
            before = Hook(_before, watch)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            after = Hook(_after, watch)
            stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def watch_call(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    hooks: Mapping[str, PortHook],
) -> Callable[[], Any]:
    """Watch ports of an attention layer in one call that is about to run.

    For hooks that stay on a module: a hook before it opens the watch, the hook after it closes it.

    Parameters
    ----------
    module : nn.Module
    args, kwargs : tuple and dict
        Of the call.
    hooks : mapping of str to callable
        By port; see ``watch_attention``.

    Returns
    -------
    callable
        To be called after the module: it closes the watch, and returns the changed output, or None
        for the module's own.
    """
    own = {(id(module), port): [hook] for port, hook in hooks.items()}
    watch = AttentionWatch(own, edits=True)
    stack = contextlib.ExitStack()
    hold_interface()
    stack.callback(release_interface)
    stack.enter_context(opened(watch))

    def close() -> Any:
        with stack:
            return _after(watch, module, args, None)

    try:
        _before(watch, module, args, kwargs)
    except BaseException:
        stack.close()
        raise
    return close


def _before(
    watch: AttentionWatch, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None
) -> None:
    """Prepare a watched call before it runs; the first of several sessions does it for all."""
    watched = WatchedAttention.find(module)
    if watched is None or watched.first is not watch or kwargs is None:
        return
    if isinstance(module, nn.MultiheadAttention):
        watch.notes[id(module)] = observe(module, watched, args, kwargs)
    elif asks_interface(type(module)):
        watch.notes[id(module)] = source_of(module, args, kwargs)
    else:
        watch.enter(FunctionsWatched(module, watched, source_of(module, args, kwargs)))


def _after(watch: AttentionWatch, module: nn.Module, args: Any, output: Any) -> Any:
    """Return the output that hooks changed, or None to keep the module's own output."""
    watch.leave()
    noted = watch.notes.pop(id(module), None)
    return noted if isinstance(module, nn.MultiheadAttention) else None
