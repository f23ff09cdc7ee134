"""States of requests inside a worker of vLLM; named as ``worker_extension_cls``.

A batch of vLLM holds the scheduled tokens of all running requests, one after another. A hook behind
a block sees them so, and the runner's own batch says whose each row is and at which position.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load, save
from torch import Tensor, nn

from sonde.core.edit import AffineMap


@dataclass
class Stretch:
    """Rows of one request in one forward pass.

    Parameters
    ----------
    request : str
        vLLM's own id of the request.
    position : int
        Position of the first row.
    size : int
    prompt : int
        Number of tokens of the request's prompt.
    """

    request: str
    position: int
    size: int
    prompt: int = 0


@dataclass(frozen=True, eq=False)
class StateChange:
    """An affine change of the states of some tokens behind one block.

    Parameters
    ----------
    path : str
    map : AffineMap
    words : frozenset of str
        ``all``, ``prompt``, ``generated``, ``last``.
    positions, ids : tuple of int
        Positions in the text, and token ids, that are changed too.
    """

    path: str
    map: AffineMap
    words: frozenset[str]
    positions: tuple[int, ...]
    ids: tuple[int, ...]

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "StateChange":
        """Return the change that a message of ``BlockChange`` describes."""
        affine = AffineMap(**load(message["tensors"]), scale=message["scale"])
        words, positions, ids = (message[name] for name in ("words", "positions", "ids"))
        return cls(message["path"], affine, frozenset(words), tuple(positions), tuple(ids))

    def __call__(
        self, rows: Float[Tensor, "row dim"], batch: "ScheduledRows"
    ) -> Float[Tensor, "row dim"]:
        """Return the changed states; half precision is edited in float32 and rounded once."""
        wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        new = self.map(wide).to(rows.dtype)
        if "all" in self.words or {"prompt", "generated"} <= self.words:
            return new
        return torch.where(self._selected(batch)[:, None].to(rows.device), new, rows)

    def _selected(self, batch: "ScheduledRows") -> Bool[Tensor, "row"]:
        position, prompt = batch.position, batch.prompt
        chosen = torch.zeros_like(position, dtype=torch.bool)
        if "prompt" in self.words:
            chosen |= position < prompt
        if "generated" in self.words:
            chosen |= position >= prompt
        if "last" in self.words:
            chosen |= position == prompt - 1
        if self.positions:
            chosen |= torch.isin(position, torch.tensor(self.positions))
        if self.ids:
            if batch.ids is None:
                raise RuntimeError("expected token ids, by which states are edited, got embeddings")
            chosen |= torch.isin(batch.ids[: len(position)].cpu(), torch.tensor(self.ids))
        return chosen


@dataclass(frozen=True, eq=False)
class ScheduledRows:
    """The rows of one forward pass.

    Parameters
    ----------
    stretches : list of Stretch
        In the order of the rows.
    ids : Int[Tensor, "row"] or None
        Token of each row; vLLM may pad them at the end. None if it was given embeddings.
    """

    stretches: list[Stretch]
    ids: Tensor | None

    @property
    def position(self) -> Tensor:
        """Position in its text of each row."""
        return torch.cat([torch.arange(s.position, s.position + s.size) for s in self.stretches])

    @property
    def prompt(self) -> Tensor:
        """Length of the prompt of each row."""
        return torch.cat([torch.full((s.size,), s.prompt) for s in self.stretches])


@dataclass
class Recording:
    """States that are taken, and changed, while requests run.

    Parameters
    ----------
    runner : object
        vLLM's runner of the model.

    Attributes
    ----------
    paths : tuple of str
        Modules whose states are taken.
    states : dict of str to list
        By request: position of the first row of each forward pass, and the rows of all modules.
    """

    runner: Any
    paths: tuple[str, ...] = ()
    states: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    _scheduled: Any = None
    _ids: Any = None
    _batch: ScheduledRows | None = None
    _rows: dict[str, Tensor] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)
    _run: Callable[..., Any] | None = None

    def watch(self, paths: Sequence[str], changes: Sequence[StateChange] = ()) -> None:
        """Take the states behind some modules from now on, and change them afterwards.

        Parameters
        ----------
        paths : sequence of str
            Modules of one width, whose states are taken as they are before the changes behind them.
        changes : sequence of StateChange
            Applied in this order.
        """
        self.close()
        if {*paths} != {*self.paths}:
            self.states.clear()  # rows of other modules
            self.paths = tuple(paths)
        if not paths and not changes:
            return
        root = self.runner.get_model()
        modules = dict(root.named_modules())
        self._handles.append(root.register_forward_pre_hook(self._begin, with_kwargs=True))
        for path in dict.fromkeys([*paths, *(change.path for change in changes)]):
            own = [change for change in changes if change.path == path]
            hook = partial(self._after, path, path in paths, own)
            self._handles.append(modules[path].register_forward_hook(hook))
        self._run = self.runner.execute_model
        self.runner.execute_model = self._execute

    def close(self) -> None:
        """Take and change no further states."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._run is not None:
            self.runner.execute_model, self._run = self._run, None

    def _execute(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._run is not None  # ``watch`` kept it
        self._scheduled = scheduled
        try:
            result = self._run(scheduled, *args, **kwargs)
            if self._rows:
                self._keep()
            return result
        finally:
            self._scheduled = self._batch = self._ids = None
            self._rows.clear()

    def _begin(self, _: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._batch, self._ids = None, kwargs.get("input_ids", args[0] if args else None)

    def _after(
        self, path: str, taken: bool, changes: Sequence[StateChange], _: Any, args: Any, output: Any
    ) -> Any:
        if self._scheduled is None:
            return None  # vLLM's own warm-up
        if self._batch is None:
            self._batch = ScheduledRows(self._stretches(), self._ids)
        rows = state_of(output)
        if taken:
            self._rows[path] = rows
        if not changes:
            return None
        n, new = sum(one.size for one in self._batch.stretches), rows
        for change in changes:
            new = torch.cat([change(new[:n], self._batch), new[n:]])
        return with_state(output, new)

    def _keep(self) -> None:
        """Keep the rows of a forward pass by request, those of all modules in one tensor."""
        assert self._batch is not None  # ``_after`` made it
        step = torch.stack([self._rows[path] for path in self.paths])
        start, is_shared = 0, len(self._batch.stretches) > 1
        for one in self._batch.stretches:
            own = step[:, start : start + one.size]
            own = own.clone() if is_shared else own  # a view would keep the others' rows alive
            self.states.setdefault(one.request, []).append((one.position, own))
            start += one.size

    def _stretches(self) -> list[Stretch]:
        """Return whose the rows of this forward pass are, in their order."""
        batch, scheduled = self.runner.input_batch, self._scheduled.num_scheduled_tokens
        first, prompt = batch.num_computed_tokens_cpu, batch.num_prompt_tokens
        return [
            Stretch(request, int(first[i]), int(scheduled[request]), int(prompt[i]))
            for i, request in enumerate(batch.req_ids)
            if scheduled.get(request)
        ]

    def take(self, name: str, length: int, *, forget: bool = True) -> dict[str, Tensor]:
        """Return the states of a request's first positions.

        A position that was computed twice, as after a preemption, has its last state.

        Parameters
        ----------
        name : str
            Name that the request was given; vLLM adds random letters to it.
        length : int
        forget : bool, default=True
            Keep no states of the request from now on.

        Raises
        ------
        RuntimeError
            If a position has no state, as of a cached prefix.
        """
        request = self._request(name)
        parts = self.states.pop(request, []) if forget else self.states.get(request, [])
        if not parts:
            return {}
        n_modules, _, dim = parts[0][1].shape
        rows = torch.empty(n_modules, length, dim, dtype=parts[0][1].dtype)
        seen = torch.zeros(length, dtype=torch.bool)
        for position, part in parts:
            stop = min(length, position + part.shape[1])
            rows[:, position:stop] = part[:, : max(0, stop - position)]
            seen[position:stop] = True
        if not bool(seen.all()):
            missing = int((~seen).sum())
            raise RuntimeError(f"{missing} of {length} positions of {name} have no states")
        return dict(zip(self.paths, rows.unbind(), strict=True))

    def _request(self, name: str) -> str:
        """Return vLLM's own id of the last request with a name."""
        ids = (own for own in reversed(self.states) if name in (own, own.rpartition("-")[0]))
        return next(ids, name)

    def drop(self, names: Sequence[str] | None) -> None:
        """Forget the states of some requests, or of all."""
        if names is None:
            self.states.clear()
        for name in names or ():
            self.states.pop(self._request(name), None)


def state_of(output: Any) -> Tensor:
    """Return the residual stream behind a block, or the tensor that a module gives.

    Blocks of most decoders return the change and the stream before it, which the next block adds.
    """
    if isinstance(output, tuple):
        hidden, *rest = output
        return hidden + rest[0] if rest and rest[0] is not None else hidden.clone()
    return output.clone()


def with_state(output: Any, state: Tensor) -> Any:
    """Return a block's output with another state of the residual stream."""
    if not isinstance(output, tuple):
        return state
    _, *rest = output
    if rest and rest[0] is not None:
        rest[0] = torch.zeros_like(state)
    return (state, *rest)


class StateWorker:
    """Methods that sonde adds to a worker of vLLM; called by ``collective_rpc``."""

    model_runner: Any

    def sonde_modules(self) -> dict[str, str]:
        """Return the class of each module of the model, by name."""
        modules = self.model_runner.get_model().named_modules()
        return {name: type(module).__name__ for name, module in modules}

    def sonde_watch(self, paths: list[str], changes: list[dict[str, Any]]) -> None:
        """Take the states behind some modules, and change states."""
        if not hasattr(self, "_sonde"):
            self._sonde = Recording(self.model_runner)
        self._sonde.watch(paths, [StateChange.of(message) for message in changes])

    def sonde_take(
        self, lengths: dict[str, int], process: int, forget: bool = True
    ) -> list[dict[str, Tensor] | bytes]:
        """Return the states of requests, by name and number of positions.

        Parameters
        ----------
        lengths : dict of str to int
        process : int
            Who asks: another process gets bytes of safetensors, as vLLM would not send tensors.
        forget : bool, default=True
            Keep no states of the requests from now on.
        """
        each = lengths.items()
        taken = [self._sonde.take(name, length, forget=forget) for name, length in each]
        return [*taken] if process == os.getpid() else [save(states) for states in taken]

    def sonde_drop(self, names: list[str] | None = None) -> None:
        """Forget the states of some requests, or of all."""
        if hasattr(self, "_sonde"):
            self._sonde.drop(names)
