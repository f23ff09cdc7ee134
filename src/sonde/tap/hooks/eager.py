"""Disable compiled and fused code in the whole process while a model is read.

Hooks that are added after a model was compiled do not fire in the compiled code. The stance is one
for all threads, so it is taken with the first reader and given back with the last. Torch's fused
encoder layer sees hooks and steps aside, but not forwards that were exchanged.
"""

import sys
import threading
from contextlib import AbstractContextManager

import torch
from torch.backends import mha

_lock = threading.Lock()
_held: list[AbstractContextManager[None]] = []
_readers = 0
_exchanged = 0
_was_fused = True


def hold_eager() -> None:
    """Run eagerly from now on; each call needs one ``release_eager``."""
    global _readers
    with _lock:
        _readers += 1
        if not _held and "torch._dynamo" in sys.modules:
            stance = torch.compiler.set_stance("force_eager")
            stance.__enter__()
            _held.append(stance)


def release_eager() -> None:
    """Undo one ``hold_eager``."""
    global _readers
    with _lock:
        _readers -= 1
        if _readers == 0 and _held:
            _held.pop().__exit__(None, None, None)


def hold_unfused() -> None:
    """Run every module of torch's encoders from now on; each needs one ``release_unfused``."""
    global _exchanged, _was_fused
    with _lock:
        if _exchanged == 0:
            _was_fused = mha.get_fastpath_enabled()
            mha.set_fastpath_enabled(False)
        _exchanged += 1


def release_unfused() -> None:
    """Undo one ``hold_unfused``."""
    global _exchanged
    with _lock:
        _exchanged -= 1
        if _exchanged == 0:
            mha.set_fastpath_enabled(_was_fused)
