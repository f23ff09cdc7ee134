"""Facts about a forward pass that only its callers know, read from Python's call stack."""

import inspect
import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch.utils import checkpoint

from sonde.core.errors import StateError

_REENTRANT = checkpoint.CheckpointFunction.forward.__code__  # pyright: ignore[reportFunctionMemberAccess]


def in_backward() -> bool:
    """Return whether this thread is in a backward pass (recomputation in checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def in_checkpoint() -> bool:
    """Return whether a function of ``torch.utils.checkpoint`` is running."""
    return any(frame.f_code.co_filename == checkpoint.__file__ for frame in _frames())


def runs_again(with_grad: bool) -> bool:
    """Return whether checkpointing will rerun this forward pass in the backward pass.

    Parameters
    ----------
    with_grad : bool
        Whether gradients were on where the model was called. Reentrant checkpointing switches them
        off around what it will run again.
    """
    for frame in _frames():
        if frame.f_code.co_filename == checkpoint.__file__:
            if with_grad:
                return True
            if frame.f_code is _REENTRANT:
                return any(frame.f_locals["ctx"].needs_input_grad)
    return False


def require_one_run(what: str, with_grad: bool) -> None:
    """Raise if checkpointing would rerun a changed part in the backward pass.

    Raises
    ------
    StateError
        Names ``what`` is run anew.
    """
    if runs_again(with_grad):
        raise StateError(
            f"{what} is recomputed in the backward pass (torch.utils.checkpoint), where no edit "
            "acts, so the gradient would be wrong. Switch checkpointing off, as with "
            "model.gradient_checkpointing_disable(), or run without gradients."
        )


def in_assisted_decoding() -> bool:
    """Return whether ``generate`` of transformers is checking an assistant's tokens.

    The first call of the model reads proposed tokens behind the prompt then.
    """
    module = sys.modules.get("transformers.generation.utils")
    mixin = getattr(module, "GenerationMixin", None)
    loop = getattr(getattr(mixin, "_assisted_decoding", None), "__code__", None)
    return loop is not None and any(frame.f_code is loop for frame in _frames())


def _frames() -> Iterator[FrameType]:
    """Yield the stack frames around the caller, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
