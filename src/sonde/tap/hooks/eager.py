"""Compiled code set aside while anything is read, for the whole process.

Hooks that are added after a model was compiled do not fire in the compiled code. The stance is one
for all threads, so it is taken with the first reader and given back with the last.
"""

import sys
import threading
from contextlib import AbstractContextManager

import torch

_lock = threading.Lock()
_held: list[AbstractContextManager[None]] = []
_readers = 0


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
    """Take one ``hold_eager`` back."""
    global _readers
    with _lock:
        _readers -= 1
        if _readers == 0 and _held:
            _held.pop().__exit__(None, None, None)
