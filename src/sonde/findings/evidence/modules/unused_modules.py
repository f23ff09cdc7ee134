"""Modules with parameters that no forward pass has used so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sonde.core.operations import OperationMode
from sonde.tap import Probe

UNASKED = ("head", "pooler")


@dataclass(frozen=True)
class Unused:
    """A module whose parameters took no part in any forward pass.

    ``is_old_head`` says that it is the last part with weights of a module that holds most of the
    model's weights, and has linear layers alone: what a backbone keeps of its former task.
    """

    path: str
    n_parameters: int
    is_old_head: bool = False


class Silent:
    """Modules that no forward pass uses: the first pass is traced, later ones only by calls.

    In the first forward, the operands of every operation are compared with the memory of the
    parameters, so a weight that a plain function uses counts as used. In later forwards, and in
    the probe forwards before, a module counts as used if it is called.

    Parameters
    ----------
    root : nn.Module
    probe : Probe
        Knows which modules ran in the probe forwards.

    Attributes
    ----------
    n_forwards : int
        Forwards that were looked at in this process.
    """

    def __init__(self, root: nn.Module, probe: Probe) -> None:
        self.root, self.names = root, probe.names
        self.n_forwards = probe.n_forwards
        self._ran = {path for path, calls in probe.trace.items() if calls}
        self._candidates: dict[str, int] = {}

    @contextmanager
    def touching(self) -> Iterator[None]:
        """Trace one forward pass at the level of tensors."""
        touched = _Touched()
        with touched:
            yield
        self.n_forwards += 1
        for name, module in self.names.primary():
            own = [p for p in module.parameters() if p.device.type != "meta" and p.numel()]
            used = any(_storage(p) in touched.storages for p in own)
            if name and own and not used and name not in self._ran:
                self._candidates[name] = sum(p.numel() for p in {id(p): p for p in own}.values())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record calls of modules that are unused so far; costs nothing if there are none."""
        modules = self.names.modules
        handles = [
            modules[name].register_forward_pre_hook(partial(self._heard, name))
            for name in self._candidates
        ]
        if handles:
            handles.append(self.root.register_forward_pre_hook(self._count))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _heard(self, name: str, module: nn.Module, args: Any) -> None:
        self._ran.add(name)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.n_forwards += 1

    def unused(self) -> list[Unused]:
        """Return the outermost unused modules, except heads that the task does not need."""
        quiet = {name for name in self._candidates if not self._has_run(name)}
        return [
            Unused(name, count, self._is_old_head(name))
            for name, count in self._candidates.items()
            if name in quiet and name.rpartition(".")[0] not in quiet and not _is_unasked(name)
        ]

    def _is_old_head(self, name: str) -> bool:
        parent, _, last = name.rpartition(".")
        if not parent:
            return False
        held = [n for n, m in self.names.modules[parent].named_children()
                if next(m.parameters(), None) is not None]  # fmt: skip
        whole, own = (sum(p.numel() for p in m.parameters())
                      for m in (self.root, self.names.modules[parent]))  # fmt: skip
        layers = [m for m in self.names.modules[name].modules() if m._parameters]
        return (
            2 * own > whole
            and held[-1:] == [last]
            and all(isinstance(m, nn.Linear) for m in layers)
        )

    def _has_run(self, name: str) -> bool:
        return any(ran == name or ran.startswith(f"{name}.") for ran in self._ran)


class _Touched(OperationMode):
    """Records the memory of every tensor that an operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.storages.add(_storage(leaf))
        return func(*args, **(kwargs or {}))


def _storage(x: Tensor) -> int:
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _is_unasked(name: str) -> bool:
    return name.count(".") <= 1 and any(word in name.lower() for word in UNASKED)
