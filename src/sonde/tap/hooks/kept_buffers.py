"""Keep a model's buffers from the forward passes that sonde runs itself.

Running averages and counters move in eval mode too if a model's author wrote them so. A forward
pass that sonde runs to explain, judge or compress the model is none that its user asked for: it
moves copies.
"""

import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sonde.core.errors import SondeWarning

LARGEST = 1 << 24
"""Numbers in the largest buffer that is copied: packed weights are buffers too."""


@dataclass(frozen=True, eq=False)
class _Kept:
    module: nn.Module
    name: str
    before: Tensor
    copy: Tensor | None
    version: int


@dataclass(eq=False)
class _Open:
    """The buffer of a module that some blocks hold: its own tensor, and these blocks in order."""

    own: Tensor
    blocks: list["KeptBuffers"]


_lock = threading.Lock()
_open: dict[tuple[int, str], _Open] = {}


class KeptBuffers:
    """The buffers of some modules; copies of the buffers stand in the modules until ``restore``.

    The graph of a forward pass refers to the copies, so it stays valid. Buffers that share a tensor
    share its copy. Blocks of several threads may overlap: the last one puts back the own buffers.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        copies: dict[int, Tensor] = {}
        self._kept: list[_Kept] = []
        with _lock:
            for module in modules:
                for name, now in module._buffers.items():
                    if isinstance(module, torch.jit.ScriptModule) or not _is_plain(now):
                        continue
                    copy = None
                    if now.numel() <= LARGEST:
                        copy = copies.setdefault(id(now), now.detach().clone())
                        _open.setdefault((id(module), name), _Open(now, [])).blocks.append(self)
                        module._buffers[name] = copy
                    self._kept.append(_Kept(module, name, now, copy, now._version))

    def restore(self) -> None:
        """Put the buffers back; a cache that the forward pass replaced by a larger one stays.

        Warns of a buffer that is too large to be copied and was written into.
        """
        with _lock:
            for kept in self._kept:
                back = kept.before if kept.copy is None else self._left(kept)
                now = kept.module._buffers.get(kept.name)
                is_replaced = now is not (kept.before if kept.copy is None else kept.copy)
                is_cache = kept.name in kept.module._non_persistent_buffers_set
                if back is not None and now is not None and not (is_replaced and is_cache):
                    kept.module._buffers[kept.name] = back
        for kept in self._kept:
            if kept.copy is None and kept.before._version != kept.version:
                warnings.warn(
                    f"the forward pass wrote into the buffer {kept.name} of "
                    f"{type(kept.module).__name__}, which has more than {LARGEST:,} numbers and "
                    "was not copied: it stays changed. Copy the model before.",
                    SondeWarning,
                    stacklevel=3,
                )

    def _left(self, kept: _Kept) -> Tensor | None:
        """Return what follows this block's copy of a buffer; None while another copy stands."""
        held = _open[id(kept.module), kept.name]
        is_last = held.blocks[-1] is self
        held.blocks.remove(self)
        if not held.blocks:
            del _open[id(kept.module), kept.name]
            return held.own
        return kept.before if is_last else None


def _is_plain(x: Tensor | None) -> TypeGuard[Tensor]:
    return x is not None and type(x) is Tensor and not (x.is_meta or x.is_inference())
