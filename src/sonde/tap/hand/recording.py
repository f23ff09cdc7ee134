"""Outputs of every module in one forward pass, stored for replay as far as possible."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from sonde.tap.hooks.eager import (
    hold_eager,
    hold_unfused,
    release_eager,
    release_unfused,
)
from sonde.tap.hooks.outputs import copied, leaves
from sonde.tap.hooks.session import Session

Forward = Callable[..., Any]
Around = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""``around(module, forward, args, kwargs)`` gives what the forward would give."""


@dataclass(eq=False)
class RecordedCall:
    """One call of a module: its output, and the calls that it made.

    Attributes
    ----------
    begin, end : int
        Places in the order of all beginnings and ends of the forward.
    output : object
        A copy.
    can_skip : bool
        Whether the output says all that the call did: it holds tensors and plain values alone and
        no view of an input, and no input was changed except inputs that are returned.
    same : dict of str to str
        Outputs that are inputs themselves, by the keys of both.
    """

    module: nn.Module
    begin: int
    end: int = -1
    output: Any = None
    can_skip: bool = False
    same: dict[str, str] = field(default_factory=dict[str, str])
    children: list["RecordedCall"] = field(default_factory=list["RecordedCall"])


class CallRecorder:
    """Records the calls of one forward pass."""

    def __init__(self) -> None:
        self._clock = 0
        self._stack: list[RecordedCall] = []
        self.calls: list[RecordedCall] = []

    def __call__(
        self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a module's forward pass, and store its output."""
        call = RecordedCall(module, self._tick())
        self.calls.append(call)
        if self._stack:
            self._stack[-1].children.append(call)
        given = leaves((args, kwargs))
        versions = {key: x._version for key, x in given.items()}
        self._stack.append(call)
        try:
            output = forward(*args, **kwargs)
        finally:
            self._stack.pop()
        changed = {key for key, x in given.items() if x._version != versions[key]}
        returned = leaves(output)
        call.same = {o: i for o, y in returned.items() for i, x in given.items() if x is y}
        is_view = any(
            _shares(y, x) for o, y in returned.items() if o not in call.same for x in given.values()
        )
        is_said = changed <= set(call.same.values())
        call.can_skip = is_plain(output) and not is_view and is_said
        call.output = copied(output) if call.can_skip else None
        call.end = self._tick()
        return output

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


@contextmanager
def intercepted(modules: Sequence[nn.Module], around: Around) -> Iterator[None]:
    """Run ``around`` in place of modules' forward passes, in this thread or task.

    Several threads may intercept one module, each for itself, and end in any order.
    """
    interception = _Interception(frozenset(map(id, modules)), around)
    hold_eager()
    hold_unfused()
    token = _OPEN.set((*_OPEN.get(), interception))
    taken: list[nn.Module] = []
    try:
        for module in modules:
            _take(module)
            taken.append(module)
        yield
    finally:
        for module in taken:
            _give_back(module)
        _OPEN.reset(token)
        release_unfused()
        release_eager()


@dataclass(frozen=True, eq=False)
class _Interception:
    """A function that runs in place of the forward pass of modules, given by their ids."""

    modules: frozenset[int]
    around: Around


_OPEN: ContextVar[tuple[_Interception, ...]] = ContextVar("sonde_interceptions", default=())
_lock = threading.Lock()
_taken: dict[int, tuple[Any, int]] = {}
"""A module's own forward function and the number of blocks that intercept it, by its id."""


def _take(module: nn.Module) -> None:
    with _lock:
        own, n_blocks = _taken.get(id(module), (module.__dict__.get("forward"), 0))
        if n_blocks == 0:
            module.__dict__["forward"] = _dispatching(module, module.forward)
        _taken[id(module)] = own, n_blocks + 1


def _give_back(module: nn.Module) -> None:
    with _lock:
        own, n_blocks = _taken.pop(id(module))
        if n_blocks > 1:
            _taken[id(module)] = own, n_blocks - 1
        elif own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own


def _dispatching(module: nn.Module, forward: Forward) -> Forward:
    """Return a forward pass that runs through the functions of the calling context."""

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = forward
        for one in _OPEN.get():
            if id(module) in one.modules:
                run = _through(one.around, module, run)
        return run(*args, **kwargs)

    return call


def _through(around: Around, module: nn.Module, forward: Forward) -> Forward:
    return lambda *args, **kwargs: around(module, forward, args, kwargs)


def is_plain(value: Any) -> bool:
    """Return whether a value consists only of tensors and plain values."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, Tensor):
        return not value.is_nested
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(is_plain(getattr(value, f.name)) for f in fields(value))
    return False


def _shares(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors share memory."""
    if not x.numel() or x.is_nested or y.is_nested:
        return False
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def calls_of(
    root: nn.Module, modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[nn.Module, Tensor]]:
    """Return the first tensor argument of each call of some modules in one forward pass.

    The model runs in eval mode without gradients, and is left as it was. Tensors are copies;
    modules that read the same tensor share one copy.

    Parameters
    ----------
    root : nn.Module
        Module that is run.
    modules : sequence of nn.Module
        Parts of ``root``.
    args, kwargs : tuple, dict
        What ``root`` is called with.
    """
    calls: list[tuple[nn.Module, Tensor]] = []
    copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # the originals keep their ids taken

    def around(
        module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        _, copy = copies.setdefault((id(x), x._version), (x, x.detach().clone()))
        calls.append((module, copy))
        return forward(*args, **kwargs)

    with Session(root), intercepted(modules, around), torch.no_grad():
        root(*args, **kwargs)
    return calls
