"""Hooks on a live module, put on for one forward and taken off again, whatever happens.

A ``Session`` owns every change that reading needs (hooks, eval mode, frozen parameters, eager
stance) and takes each one back on exit, also after an exception. It is bound to the thread that
opened it: other threads may run the model meanwhile and pass through.
"""

import contextlib
import contextvars
import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from sonde.core.errors import InputError, SiteError, StateError
from sonde.tap.hooks.eager import hold_eager, release_eager
from sonde.tap.hooks.holding import Holding

GUARDS = "_guards_fn"
# The flags themselves: user classes override train() and eval() to merge or to freeze weights.
TRAINING, REQUIRES_GRAD = Holding("training"), Holding("requires_grad")
OutputHook = Callable[[Any], Any]
InputHook = Callable[[tuple[Any, ...], dict[str, Any]], Any]

_ACTIVE: contextvars.ContextVar[tuple["Session", ...]] = contextvars.ContextVar(
    "sonde_sessions", default=()
)


class Stop(BaseException):
    """Ends a forward after the last site; a model's own ``except Exception`` does not catch it."""

    def __init__(self, owner: object) -> None:
        self.owner = owner


def in_backward() -> bool:
    """Return whether this thread is inside a backward pass (recomputation under checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def in_checkpoint() -> bool:
    """Return whether this forward is run once more in the backward pass (checkpointing)."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def active_sessions() -> tuple["Session", ...]:
    """Return the sessions open in this thread, outermost first."""
    return _ACTIVE.get()


class Session:
    """Watches modules of one live model while it is open.

    Parameters
    ----------
    root : nn.Module
    outputs : sequence of (module, hook)
        ``hook(output)`` runs after the module; what it returns, if not None, replaces the output.
    inputs : sequence of (module, hook)
        ``hook(args, kwargs)`` runs before the module; may return a new ``(args, kwargs)``.
    reading : bool, default=True
        Put the model in eval mode meanwhile; an edit leaves the mode alone.
    with_grad : bool, default=False
        Run with gradients on, all parameters frozen; without, run under ``no_grad``.
    in_eval : bool, default=True
        With ``reading``, put the model in eval mode; without, leave its mode as it is.
    finish : callable, optional
        Runs after each call of ``root``, also after one that raises.
    inside : callable, optional
        Makes what is open as long as the session is, to look inside modules: ``watch_attention``.
    owner : str, default="Tap"
        Who opens it, for messages.
    """

    def __init__(
        self,
        root: nn.Module,
        outputs: Sequence[tuple[nn.Module, OutputHook]] = (),
        inputs: Sequence[tuple[nn.Module, InputHook]] = (),
        *,
        reading: bool = True,
        with_grad: bool = False,
        modules: Sequence[nn.Module] | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        in_eval: bool = True,
        finish: Callable[[], None] | None = None,
        inside: Callable[[], AbstractContextManager[None]] | None = None,
        owner: str = "Tap",
    ) -> None:
        self.root, self.outputs, self.inputs = root, tuple(outputs), tuple(inputs)
        self.reading, self.with_grad = reading, with_grad
        self._in_eval, self._finish, self._owner = in_eval, finish, owner
        self._inside = inside
        self._modules, self._parameters = modules, parameters
        self._handles: list[RemovableHandle] = []
        self._stack = contextlib.ExitStack()
        self._token: contextvars.Token[tuple[Session, ...]] | None = None
        self._running = False

    def __enter__(self) -> "Session":
        if self in _ACTIVE.get():
            raise InputError(
                f"{self._owner}: expected one with block at a time, got a second one while the "
                f"first is open. Make another {self._owner} for the second."
            )
        try:
            if self.reading and self._in_eval:
                self._to_eval()
            if self.with_grad:
                self._freeze()
            hold_eager()
            self._stack.callback(release_eager)
            before = _ACTIVE.get()
            self._stack.callback(_leave, self)
            _ACTIVE.set((*before, self))
            self._stack.callback(self._unhook)
            self._hook()
            if self._inside is not None:
                self._stack.enter_context(self._inside())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def __reduce__(self) -> Any:
        raise StateError(
            f"{self._owner}: expected a model without open sessions to be pickled, as by "
            f"torch.save(model), got {type(self.root).__name__} inside a block of {self._owner}. "
            "Save model.state_dict(), or save the model after the block."
        )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the model's outputs, or None if a hook ended the forward early."""
        self._running = True
        try:
            with torch.enable_grad() if self.with_grad else torch.no_grad():
                return self.root(*args, **kwargs)
        except Stop as stop:
            if stop.owner is not self:
                raise
            return None
        finally:
            self._running = False

    def stop(self) -> None:
        """End the forward that ``run`` has begun; do nothing in anybody else's forward."""
        if self._running:
            raise Stop(self)

    def move_to_end(self) -> None:
        """Put the hooks last again, after an edit was opened inside."""
        self._unhook()
        self._hook()

    def _hook(self) -> None:
        for module, hook in self.outputs:
            self._handles.append(module.register_forward_hook(partial(_after, self, hook)))
        for module, hook in self.inputs:
            handle = module.register_forward_pre_hook(
                partial(_before, self, hook), with_kwargs=True
            )
            self._handles.append(handle)
        if self._finish is not None:
            last = partial(_finished, self, self._finish)
            self._handles.append(self.root.register_forward_hook(last, always_call=True))

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _to_eval(self) -> None:
        modules = self._modules if self._modules is not None else list(self.root.modules())
        self._stack.callback(TRAINING.give, TRAINING.take(modules))

    def _freeze(self) -> None:
        known = self._parameters if self._parameters is not None else list(self.root.parameters())
        self._stack.callback(REQUIRES_GRAD.give, REQUIRES_GRAD.take(known))


def _after(session: Session, hook: OutputHook, module: nn.Module, args: Any, output: Any) -> Any:
    if session not in _ACTIVE.get() or torch._C._current_graph_task_id() != -1:
        return None
    return hook(output)


def _before(
    session: Session, hook: InputHook, module: nn.Module, args: tuple[Any, ...], kwargs: Any
) -> Any:
    if session not in _ACTIVE.get() or torch._C._current_graph_task_id() != -1:
        return None
    return hook(args, kwargs)


def _finished(
    session: Session, finish: Callable[[], None], module: nn.Module, args: Any, output: Any
) -> None:
    if session in _ACTIVE.get() and not in_backward():
        finish()


def _leave(session: Session) -> None:
    _ACTIVE.set(tuple(s for s in _ACTIVE.get() if s is not session))


def check_readable(root: nn.Module) -> None:
    """Refuse models whose modules hooks cannot see, or see in several replicas at once."""
    for module in root.modules():
        name = type(module).__name__
        if getattr(module, "attention_type", None) == "block_sparse":
            raise SiteError(
                f"Tap: {name} turns itself to full attention at the first short text, for good, so "
                "its rows would depend on what was read before. Turn it before: "
                "model.set_attention_type('original_full')."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SiteError(
                f"Tap: {name} is scripted or traced: its inner modules run without hooks. "
                "Pass the Python module that it was made from."
            )
        if isinstance(module, nn.DataParallel):
            raise SiteError(
                "Tap: replicas of nn.DataParallel return rows in no order. "
                "Tap the module inside (model.module), one process per device."
            )
        if name == "FullyShardedDataParallel" or name.startswith("FSDP"):
            raise SiteError(
                f"Tap: {name} shards its weights over ranks, which is not supported. "
                "Tap the module before it is sharded, one process per device."
            )
        if isinstance(module, torch.fx.GraphModule) and _is_flat(module):
            raise SiteError(
                "Tap: an exported model runs as one flat graph without modules. "
                "Pass the Python module that it was made from."
            )


def _is_flat(graph: torch.fx.GraphModule) -> bool:
    """Return whether a graph lists modules but calls none of them (an export's guards aside)."""
    listed = [name for name in graph._modules if name != GUARDS]
    called = [n for n in graph.graph.nodes if n.op == "call_module" and n.target != GUARDS]
    return bool(listed) and not called
