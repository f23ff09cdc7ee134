"""Modules that hold a tensor in another form while they run: asked for it before it is read."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Repacks(Protocol):
    """A module whose buffers may be held in a form for the processor."""

    def take_back(self) -> None:
        """Hold every buffer in its own form again, until the next run."""


def in_own_form(module: nn.Module) -> None:
    """Let all parts of a module hold their buffers in the form that files have.

    To be called before buffers are read directly; ``state_dict``, copies and moves do so
    themselves.
    """
    for part in module.modules():
        if isinstance(part, Repacks):
            part.take_back()
