"""Data that sessions store about a running forward pass, in the caller's context.

Hooks are on the module and run for every caller. A hook before the root opens a ``Running`` in a
``ContextVar``; the hooks at sites, which run in the same context, write into the state that they
find there; a hook behind the root closes it, also after an exception.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

from torch import nn

CALL = nn.Module._call_impl.__code__
_INNERMOST: ContextVar["Running | None"] = ContextVar("sonde_running", default=None)


class Running:
    """A running forward pass, as one session sees it.

    Parameters
    ----------
    owner : Session
    frame : FrameType or None
        The Python frame that calls the hooks before and behind the module.
    finish : callable
        ``finish(state)`` runs when the forward is over, also after an exception.

    Attributes
    ----------
    state : object
        What the session keeps of this forward.
    outer : Running or None
        The forward, of any session, in which this one runs.
    """

    __slots__ = ("finish", "frame", "outer", "owner", "state")

    def __init__(self, owner: Any, frame: FrameType | None, finish: Callable[[Any], None]) -> None:
        self.owner, self.frame, self.finish = owner, frame, finish
        self.state: Any = None
        self.outer: Running | None = None

    def open(self, state: Any) -> None:
        """Make the state visible to hooks in this context."""
        outer = _INNERMOST.get()
        while outer is not None and not _is_called_from(outer.frame):
            outer = outer.outer  # its forward ended by an exception that runs no hook
        self.state, self.outer = state, outer
        _INNERMOST.set(self)

    def close(self) -> None:
        """Run ``finish``, then make the enclosing forward pass visible to hooks again."""
        try:
            self.finish(self.state)
        finally:
            self._leave()
            self.state = self.frame = self.outer = None

    def _leave(self) -> None:
        inner = _INNERMOST.get()
        if inner is self:
            _INNERMOST.set(self.outer)
        while inner is not None and inner.outer is not self:
            inner = inner.outer
        if inner is not None:  # sessions close in the order in which they were opened
            inner.outer = self.outer

    @property
    def is_running(self) -> bool:
        """True if the forward pass is still running, in any thread."""
        frames = sys._current_frames().values()
        return any(_is_in(self.frame, innermost) for innermost in frames)


def state_of(owner: object) -> Any:
    """Return the state of the innermost forward pass in this context, or None."""
    running = _INNERMOST.get()
    while running is not None and running.owner is not owner:
        running = running.outer
    return None if running is None else running.state


def innermost() -> Running | None:
    """Return the innermost forward pass in this context."""
    return _INNERMOST.get()


def running_inside(outer: Running | None) -> list[Running]:
    """Return this context's forward passes that began inside another one, innermost first."""
    running, inside = _INNERMOST.get(), list[Running]()
    while running is not None and running is not outer:
        inside.append(running)
        running = running.outer
    return inside


def running_in(owner: object, frame: FrameType | None) -> Running | None:
    """Return the forward pass of a session that a frame calls, or None."""
    running = _INNERMOST.get()
    while running is not None and not (running.owner is owner and running.frame is frame):
        running = running.outer
    return running


def calling_frame() -> FrameType | None:
    """Return the frame of the call of the module whose hook is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not CALL:
        frame = frame.f_back
    return frame


def _is_called_from(frame: FrameType | None) -> bool:
    return frame is None or _is_in(frame, sys._getframe(1))


def _is_in(frame: FrameType | None, innermost: FrameType | None) -> bool:
    while innermost is not None and innermost is not frame:
        innermost = innermost.f_back
    return innermost is not None
