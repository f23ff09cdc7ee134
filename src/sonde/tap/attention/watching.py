"""Hooks of open sessions at the ports of attention layers, looked up when the layer runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sonde.tap.hooks.port_view import PortView

PortHook = Callable[[Any], Any]
Figures = Mapping[str, Callable[[], Tensor]]


class _OfThread(threading.local):
    """A watch's data on the attention layers that run in one thread."""

    def __init__(self) -> None:
        self.notes: dict[int, Any] = {}
        self.mode: TorchFunctionMode | None = None


@dataclass(eq=False)
class AttentionWatch:
    """Attention layers that one session watches.

    Parameters
    ----------
    hooks : dict of (id of module, port) to list of hook
        ``hook(view)`` is given a ``PortView``; what it returns, if not None, replaces it.
    edits : bool
        Whether the session changes states; if so, it comes before sessions that only read.
    here : bool, default=True
        Watch the context that opens it alone.
    own : _OfThread
        ``notes``: what a hook before a module keeps for the one after it, by id of the module.
        ``mode``: open while an attention runs that is written with torch's functions.
    """

    hooks: dict[tuple[int, str], list[PortHook]]
    edits: bool
    here: bool = True
    own: _OfThread = field(default_factory=_OfThread)

    def __post_init__(self) -> None:
        self.owners = frozenset(owner for owner, _ in self.hooks)

    @property
    def notes(self) -> dict[int, Any]:
        """Notes on the attention layers that run in this thread, by module id."""
        return self.own.notes

    def enter(self, mode: TorchFunctionMode) -> None:
        """Enter a torch function mode in this thread."""
        self.leave()
        self.own.mode = mode
        mode.__enter__()

    def leave(self) -> None:
        """Exit the mode if it is open, for instance after a forward pass that stopped early."""
        if self.own.mode is not None:
            self.own.mode.__exit__(None, None, None)
        self.own.mode = None


_OPEN: ContextVar[tuple[AttentionWatch, ...]] = ContextVar("sonde_attention", default=())
_everywhere: tuple[AttentionWatch, ...] = ()
_lock = threading.Lock()


def is_anything_watched() -> bool:
    """Return whether the port of any attention is watched in this context."""
    return bool(_everywhere or _OPEN.get())


@contextlib.contextmanager
def opened(watch: AttentionWatch) -> Iterator[None]:
    """Register the watch for the attention layers of this context, or of all contexts."""
    global _everywhere
    if watch.here:
        _OPEN.set((*_OPEN.get(), watch))
    else:
        with _lock:
            _everywhere = (*_everywhere, watch)
    try:
        yield
    finally:
        _OPEN.set(tuple(w for w in _OPEN.get() if w is not watch))
        with _lock:
            _everywhere = tuple(w for w in _everywhere if w is not watch)


class WatchedAttention:
    """The hooks of all sessions in this context at one attention layer, edits first."""

    def __init__(self, module: nn.Module, watches: Sequence[AttentionWatch]) -> None:
        self._id, self._watches = id(module), watches
        self.first = watches[0]

    @classmethod
    def find(cls, module: nn.Module) -> "WatchedAttention | None":
        """Return a module's watches, or None if it has none or a backward pass is running."""
        if torch._C._current_graph_task_id() != -1:
            return None
        watches = [w for w in (*_everywhere, *_OPEN.get()) if id(module) in w.owners]
        watches.sort(key=lambda w: not w.edits)
        return cls(module, watches) if watches else None

    def wants(self, port: str) -> bool:
        """Return whether a hook is registered at a port."""
        return any((self._id, port) in watch.hooks for watch in self._watches)

    def seen(
        self,
        port: str,
        x: Tensor,
        figures: Figures | None = None,
        lengths: Sequence[int] | None = None,
        *,
        of_encoder: bool = False,
        in_sight: Tensor | None = None,
    ) -> Tensor:
        """Return heads, (example, position, head, width), after the hooks; ``x`` if unchanged.

        Parameters
        ----------
        port : str
        x : Float[Tensor, "example pos head width"]
        figures : mapping of str to callable, optional
            Make what can be read of each head.
        lengths : sequence of int, optional
            Real positions of each example where hooks are given nested tensors.
        of_encoder : bool, default=False
            Whether the positions are those of an encoder's text.
        in_sight : Bool[Tensor, "_example _head query key"], optional
            For probabilities: which keys each query may see; all keys by default.
        """
        for watch in self._watches:
            for hook in watch.hooks.get((self._id, port), ()):
                view = PortView(x, figures or {}, lengths, of_encoder=of_encoder, in_sight=in_sight)
                new = hook(view)
                x = x if new is None or new is view else view.with_changes(new)
        return x
