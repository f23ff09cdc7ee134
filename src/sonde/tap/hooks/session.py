"""Hooks on a live model for some forward passes, removed even after an exception.

A ``Session`` owns every change that reading needs (hooks, eval mode, frozen parameters, eager
stance) and takes each one back on exit, also after an exception. Its hooks are on the module. They
act in the context that opened the session (``here``), or for whoever calls the module.
"""

import contextlib
import contextvars
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sonde.core.errors import InputError, SiteError, SondeWarning, StateError
from sonde.core.wording import plural
from sonde.tap.hooks.eager import hold_eager, release_eager
from sonde.tap.hooks.following import (
    Running,
    calling_frame,
    innermost,
    running_in,
    running_inside,
    state_of,
)
from sonde.tap.hooks.holding import REQUIRES_GRAD, TRAINING
from sonde.tap.hooks.inert import Hook
from sonde.tap.hooks.kept_buffers import KeptBuffers
from sonde.tap.hooks.sharding import (
    SplitLayers,
    release_gathered,
    require_one_kind,
    require_own,
    require_whole,
    split_layers,
)

GUARDS = "_guards_fn"
Parts = Literal["refuse", "skip", "show"]
OutputHook = Callable[[Any], Any]
InputHook = Callable[[tuple[Any, ...], dict[str, Any]], Any]
PATIENCE_SECONDS = 60.0
"""How long a session that closes waits for forwards that other threads have begun."""

_ACTIVE: contextvars.ContextVar[tuple["Session", ...]] = contextvars.ContextVar(
    "sonde_sessions", default=()
)
_RUNS: contextvars.ContextVar[tuple["Session", ...]] = contextvars.ContextVar(
    "sonde_session_runs", default=()
)
_all_lock = threading.Lock()
_all: tuple["Session", ...] = ()


class Stop(BaseException):
    """Ends a forward pass after the last site; ``except Exception`` does not catch it."""

    def __init__(self, owner: object) -> None:
        self.owner = owner


def active_sessions() -> list["Session"]:
    """Return the sessions with hooks active in this context, in order of opening."""
    return [session for session in _all if session.acts_here]


def open_sessions() -> tuple["Session", ...]:
    """Return the sessions open in any thread, in order of opening."""
    return _all


@dataclass(frozen=True)
class Followed:
    """A module whose calls a session follows from start to end.

    Parameters
    ----------
    module : nn.Module
    begin : callable
        ``begin(args, kwargs)`` runs before each call; what it returns is the ``state`` of the
        session until the call is over. None if the call is not followed.
    finish : callable
        ``finish(state)`` runs after each call that is followed, also after one that raises.
    """

    module: nn.Module
    begin: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    finish: Callable[[Any], None]


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
    follows : sequence of Followed
        Modules whose calls have a state of their own, in whichever context they run. Their hooks
        come before ``inputs`` and after ``outputs``.
    inside : callable, optional
        Makes what is open as long as the session is, to look inside modules: ``watch_attention``.
    owner : str, default="Tap"
        Who opens it, for messages.
    here : bool, default=True
        Act in the context that opens the session alone; without, for every caller.
    passed : callable, optional
        Runs for each forward that passed by because another context runs it.
    advice : str, default=""
        What to do if no forward was followed though some ran.
    by_row : bool, default=True
        Refuse replicas of ``nn.DataParallel``: each sees a part of the rows, in no order.
    restores : bool, default=True
        Put back the buffers that sonde's own forward passes moved (``reading``, no ``follows``).
    change : object, optional
        What the hooks change, for an engine that runs the tokens elsewhere.
    parts : {"refuse", "skip", "show"}, default="refuse"
        What to do at a site where each rank of tensor parallelism holds a part: raise, leave the
        hook out, or call it.
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
        follows: Sequence[Followed] = (),
        inside: Callable[[], AbstractContextManager[None]] | None = None,
        owner: str = "Tap",
        here: bool = True,
        passed: Callable[[], None] | None = None,
        advice: str = "",
        by_row: bool = True,
        restores: bool = True,
        change: Any = None,
        parts: Parts = "refuse",
    ) -> None:
        self.change, self.parts = change, parts
        self.split: SplitLayers | None = None
        self.root, self.outputs, self.inputs = root, tuple(outputs), tuple(inputs)
        self.follows, self.here, self.is_open = tuple(follows), here, False
        self.reading, self.with_grad = reading, with_grad
        self._in_eval, self._owner = in_eval, owner
        self._inside, self._passed, self._advice = inside, passed, advice
        self._by_row = by_row
        self._restores = restores and reading and in_eval and here and not self.follows
        self._modules, self._parameters = modules, parameters
        self._handles: list[RemovableHandle] = []
        self._stack = contextlib.ExitStack()
        self._lock, self._begins = threading.Lock(), False
        self._over = threading.Condition(self._lock)
        self._running = set[Running]()
        self.n_followed = self.n_passed = self.n_outside = 0

    def __enter__(self) -> "Session":
        if self.is_open:
            raise InputError(
                f"{self._owner}: expected one with block at a time, got a second with block "
                f"while the first is open. Make another {self._owner} for the second."
            )
        self.is_open, self.n_followed, self.n_passed, self.n_outside = True, 0, 0, 0
        try:
            self._stack.callback(self._forget)
            self.split = split_layers(self.root) if self.outputs or self.inputs else None
            self._require_no_heads()
            if self.reading and self._in_eval:
                self._to_eval()
            if self._restores:
                self._stack.callback(KeptBuffers(self._every_module()).restore)
            if self.reading:
                self._stack.callback(release_gathered, self.root)
            if self.with_grad:
                self._freeze()
            hold_eager()
            self._stack.callback(release_eager)
            _remember(self)
            _ACTIVE.set((*(s for s in _ACTIVE.get() if s.is_open), self))
            self._stack.callback(self._unhook)
            self._hook()
            if self._inside is not None:
                self._stack.enter_context(self._inside())
            self._begins = True
            self._stack.callback(self._wait)
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
        if kind is None:
            self._warn_of_unseen()

    def _require_no_heads(self) -> None:
        """Raise if hooks look inside attention layers that tensor parallelism splits."""
        if self._inside is None or self.parts == "show":
            return
        require_whole(self._owner, self.root)

    @property
    def acts_here(self) -> bool:
        """True if the hooks are active in this context."""
        return self.is_open and (not self.here or self in _ACTIVE.get())

    @property
    def state(self) -> Any:
        """Result of ``begin`` for the innermost call in this context, or None."""
        return state_of(self)

    @property
    def is_opener(self) -> bool:
        """True if this context opened the session."""
        return self in _ACTIVE.get()

    @property
    def runs_here(self) -> bool:
        """True if ``run`` has begun the forward pass of this context."""
        return self in _RUNS.get()

    def __reduce__(self) -> Any:
        raise StateError(
            f"{self._owner}: expected a model without open sessions to be pickled, as by "
            f"torch.save(model), got {type(self.root).__name__} inside a block of {self._owner}. "
            "Save model.state_dict(), or save the model after the block."
        )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the model's outputs, or None if a hook ended the forward pass early."""
        outer, token = innermost(), _RUNS.set((*_RUNS.get(), self))
        try:
            with torch.enable_grad() if self.with_grad else torch.no_grad():
                try:
                    return self.root(*args, **kwargs)
                except Stop as stop:
                    if stop.owner is not self:
                        raise
                    for call in running_inside(outer):  # no hook behind a module ran
                        call.owner.end(call)
                    return None
        finally:
            _RUNS.reset(token)

    def stop(self) -> None:
        """Stop the forward pass started by ``run``; other forward passes are not stopped."""
        if self.runs_here:
            raise Stop(self)

    def move_to_end(self) -> None:
        """Register the hooks again as the last ones, after an edit was opened inside."""
        for handle in self._handles:
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id in hooks:
                hooks.move_to_end(handle.id)  # at once: other threads may run the modules

    def end(self, call: Running) -> None:
        """Close the state of a finished call."""
        try:
            call.close()
        finally:
            self._running.discard(call)
            if not self._begins:
                with self._over:
                    self._over.notify_all()

    def pass_by(self) -> None:
        """Count a forward pass that the session does not follow."""
        with self._lock:
            self.n_passed += 1

    def count_outside(self) -> None:
        """Count a site's call outside any followed call."""
        with self._lock:
            self.n_outside += 1

    def begin(
        self,
        followed: Followed,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Start to follow a call."""
        if self._by_row and module is not followed.module and "_is_replica" in module.__dict__:
            raise SiteError(
                f"{self._owner}: {type(module).__name__} runs in replicas of nn.DataParallel, "
                "each with a part of the rows, in no fixed order. Call the wrapped module "
                "(model.module), in one process per device."
            )
        call = Running(self, calling_frame(), followed.finish)
        with self._lock:
            if not self._begins:
                return
            self._running.add(call)
            self.n_followed += 1
        try:
            state = followed.begin(args, kwargs)
        except BaseException:  # the caller is told, so the call has not passed by in silence
            self._unfollow(call)
            raise
        if state is None:
            self._unfollow(call)
            self.pass_by()
        else:
            call.open(state)

    def _unfollow(self, call: Running) -> None:
        """Stop following a call that was just begun."""
        self._running.discard(call)
        with self._lock:
            self.n_followed -= 1

    def sees_whole(
        self, split: SplitLayers, module: nn.Module, value: Any, *, is_output: bool = True
    ) -> bool:
        """Return whether a hook is called with a value; raise if it is a part and refused."""
        if self.parts == "show":
            return True
        key = split.part_of(module, value, is_output=is_output)
        if key is None or self.parts == "skip":
            return key is None
        path = next((name for name, m in self.root.named_modules() if m is module), "")
        raise split.error(self._owner, f"{path}:{'out' if is_output else 'in'}", key)

    def _hook(self) -> None:
        for followed in self.follows:
            hook = Hook(_begun, self, followed)
            self._handles.append(followed.module.register_forward_pre_hook(hook, with_kwargs=True))
        if self.split is not None:
            hook = Hook(_same_inputs, self, self.split)
            self._handles.append(self.root.register_forward_pre_hook(hook, with_kwargs=True))
        for module, hook in self.outputs:
            self._handles.append(module.register_forward_hook(Hook(_after, self, hook)))
        for module, hook in self.inputs:
            handle = module.register_forward_pre_hook(Hook(_before, self, hook), with_kwargs=True)
            self._handles.append(handle)
        for followed in self.follows:
            last = Hook(_finished, self)
            self._handles.append(followed.module.register_forward_hook(last, always_call=True))

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _wait(self) -> None:
        """Follow no more calls, and wait for the calls that run in other threads."""
        with self._over:
            self._begins = False
        own, end = set(running_inside(None)), time.monotonic() + PATIENCE_SECONDS
        while any(call.is_running for call in self._running - own) and time.monotonic() < end:
            with self._over:
                self._over.wait(0.01)

    def _forget(self) -> None:
        _forget(self)
        _ACTIVE.set(tuple(s for s in _ACTIVE.get() if s is not self))
        self.is_open = self._begins = False
        self._running.clear()

    def _warn_of_unseen(self) -> None:
        """Warn if the module or a part of it ran without any followed call."""
        kind, n = type(self.root).__name__, self.n_passed
        if not self.follows or self.n_followed or not (n or self.n_outside):
            return
        if n:
            because = self._advice
            if self.here:
                because = (
                    "With here=True, only calls of the thread or task that opened the block are "
                    "observed. Leave here=True out to observe every caller."
                )
            text = f"0 of {plural(n, 'forward pass', 'forward passes')} of {kind}. {because}"
        else:
            text = (
                f"0 forward passes of {kind}, though its sites ran "
                f"{plural(self.n_outside, 'time')}: in a part that was called by itself, or by "
                ".forward(), which skips hooks. Call the module itself, or open the session on "
                "the part."
            )
        warnings.warn(f"{self._owner}: saw {text}", SondeWarning, stacklevel=5)

    def _to_eval(self) -> None:
        self._stack.callback(TRAINING.give, TRAINING.take(self._every_module()))

    def _every_module(self) -> Sequence[nn.Module]:
        return self._modules if self._modules is not None else list(self.root.modules())

    def _freeze(self) -> None:
        parameters = (
            self._parameters if self._parameters is not None else list(self.root.parameters())
        )
        self._stack.callback(REQUIRES_GRAD.give, REQUIRES_GRAD.take(parameters))


# A hook that another thread is putting on or taking off may be called without ``kwargs``.
def _begun(
    session: Session,
    followed: Followed,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Any = None,
) -> None:
    if kwargs is None or not session.is_open or torch._C._current_graph_task_id() != -1:
        return
    if session.here and session not in _ACTIVE.get():
        session.pass_by()
        if session._passed is not None:
            session._passed()
        return
    session.begin(followed, module, args, kwargs)


def _same_inputs(
    session: Session,
    split: SplitLayers,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Any = None,
) -> None:
    if kwargs is not None and session.is_open and torch._C._current_graph_task_id() == -1:
        split.require_same_inputs(session._owner, (args, kwargs))


def _finished(session: Session, module: nn.Module, args: Any, output: Any) -> None:
    call = running_in(session, calling_frame())
    if call is not None:
        session.end(call)


def _after(session: Session, hook: OutputHook, module: nn.Module, args: Any, output: Any) -> Any:
    if torch._C._current_graph_task_id() != -1 or not session.is_open:
        return None
    if session.here and session not in _ACTIVE.get():
        return None
    split = session.split
    if split is None:
        return hook(output)
    gathered = split.gathered(output)
    if not session.sees_whole(split, module, gathered):
        return None
    new = hook(gathered)
    return None if new is None or new is gathered else split.returned(output, new)


def _before(
    session: Session, hook: InputHook, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None
) -> Any:
    if torch._C._current_graph_task_id() != -1 or not session.is_open or kwargs is None:
        return None
    if session.here and session not in _ACTIVE.get():
        return None
    split = session.split
    if split is None:
        return hook(args, kwargs)
    gathered = split.gathered((args, kwargs))
    if not session.sees_whole(split, module, gathered, is_output=False):
        return None
    new = hook(*gathered)
    return None if new is None else split.returned((args, kwargs), new)


def _remember(session: Session) -> None:
    global _all
    with _all_lock:
        _all = (*_all, session)


def _forget(session: Session) -> None:
    global _all
    with _all_lock:
        _all = tuple(s for s in _all if s is not session)


def check_readable(root: nn.Module, *, sharded: bool = False) -> None:
    """Raise if hooks cannot see a model's modules, or would see several replicas or no values.

    Parameters
    ----------
    root : Module
        Module whose parts are to be read.
    sharded : bool, default=False
        Whether weights may be sharded over ranks (``fully_shard``, tensor parallelism).
    """
    require_one_kind("Tap", root)
    require_values(root)
    release_gathered(root)
    if not sharded:
        require_own("Tap", root)
    for module in root.modules():
        name = type(module).__name__
        if getattr(module, "attention_type", None) == "block_sparse":
            raise SiteError(
                f"Tap: {name} switches permanently to full attention at the first short text, so "
                "its rows would depend on earlier inputs. Switch to full attention before "
                "reading: model.set_attention_type('original_full')."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SiteError(
                f"Tap: {name} is scripted or traced: its inner modules run without hooks. "
                "Pass the Python module that it was made from."
            )
        if isinstance(module, nn.DataParallel):
            raise SiteError(
                "Tap: replicas of nn.DataParallel return rows in no fixed order. Tap the "
                "wrapped module (model.module), one process per device."
            )
        if isinstance(module, torch.fx.GraphModule) and _is_flat(module):
            raise SiteError(
                "Tap: an exported model runs as one flat graph without modules. "
                "Pass the Python module that it was made from."
            )


def require_values(root: nn.Module) -> None:
    """Raise if a model's weights have no values, and nothing loads them in a forward pass."""
    if any("_hf_hook" in vars(module) for module in root.modules()):
        return  # offloaded: accelerate loads each weight when its module runs
    for name, x in root.named_parameters():
        if x.is_meta:
            raise SiteError(
                f"Tap: expected weights with values, got {name} on the device 'meta': the model "
                "was built without loading its weights. Load them: sonde.load(MODEL), or "
                "model.to_empty(device='cpu') and load_state_dict."
            )


def _is_flat(graph: torch.fx.GraphModule) -> bool:
    """Return whether a graph lists modules but calls none of them, except export guards."""
    listed = [name for name in graph._modules if name != GUARDS]
    called = [n for n in graph.graph.nodes if n.op == "call_module" and n.target != GUARDS]
    return bool(listed) and not called
