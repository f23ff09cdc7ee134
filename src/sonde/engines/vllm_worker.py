"""States of requests inside a worker of vLLM; named as ``worker_extension_cls``.

A batch of vLLM holds the scheduled tokens of all running requests, one after another. A hook behind
a block sees them so, and the runner's own batch says whose each row is and at which position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = "layers"


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
    """

    request: str
    position: int
    size: int


@dataclass
class Recording:
    """States that are taken while requests run.

    Parameters
    ----------
    runner : object
        vLLM's runner of the model.
    paths : tuple of str
        Modules whose states are taken.

    Attributes
    ----------
    states : dict of str to dict
        By request, then by module: position of the first row, and the rows.
    """

    runner: Any
    paths: tuple[str, ...] = ()
    states: dict[str, dict[str, list[tuple[int, Tensor]]]] = field(default_factory=dict)
    _scheduled: Any = None
    _walk: list[Stretch] | None = None
    _handles: list[Any] = field(default_factory=list)
    _run: Callable[..., Any] | None = None

    def watch(self, paths: Sequence[str]) -> None:
        """Take the states behind these modules from now on."""
        self.close()
        self.paths = tuple(paths)
        modules = dict(self.runner.get_model().named_modules())
        for path in paths:
            self._handles.append(modules[path].register_forward_hook(self._hook(path)))
        self._run = self.runner.execute_model
        self.runner.execute_model = self._execute

    def close(self) -> None:
        """Take no further states."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._run is not None:
            self.runner.execute_model, self._run = self._run, None

    def _execute(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._run is not None  # ``watch`` kept it
        self._scheduled, self._walk = scheduled, None
        try:
            return self._run(scheduled, *args, **kwargs)
        finally:
            self._scheduled = None

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def take(_: nn.Module, args: Any, output: Any) -> None:
            if self._scheduled is None:
                return  # vLLM's own warm-up
            if self._walk is None:
                self._walk = self._stretches()
            rows, start = state_of(output), 0
            for one in self._walk:
                mine = rows[start : start + one.size]
                start += one.size
                kept = self.states.setdefault(one.request, {}).setdefault(path, [])
                kept.append((one.position, mine))

        return take

    def _stretches(self) -> list[Stretch]:
        """Return whose the rows of this forward pass are, in their order."""
        batch, scheduled = self.runner.input_batch, self._scheduled.num_scheduled_tokens
        computed = batch.num_computed_tokens_cpu
        return [
            Stretch(request, int(computed[i]), int(scheduled[request]))
            for i, request in enumerate(batch.req_ids)
            if scheduled.get(request)
        ]

    def take(self, request: str, length: int) -> dict[str, Tensor]:
        """Return the states of a request's first positions, and forget the request.

        A position that was computed twice, as after a preemption, has its last state.

        Raises
        ------
        RuntimeError
            If a position has no state, as of a cached prefix.
        """
        found = {}
        for path, parts in self.states.pop(request, {}).items():
            rows = torch.empty(length, parts[0][1].shape[1], dtype=parts[0][1].dtype)
            seen = torch.zeros(length, dtype=torch.bool)
            for position, part in parts:
                stop = min(length, position + len(part))
                rows[position:stop] = part[: max(0, stop - position)]
                seen[position:stop] = True
            if not bool(seen.all()):
                missing = int((~seen).sum())
                raise RuntimeError(f"{missing} of {length} positions of {request} have no states")
            found[path] = rows
        return found


def state_of(output: Any) -> Tensor:
    """Return the residual stream behind a block, or the tensor that a module gives.

    Blocks of most decoders return the change and the stream before it, which the next block adds.
    """
    if isinstance(output, tuple):
        hidden, *rest = output
        return hidden + rest[0] if rest and rest[0] is not None else hidden.clone()
    return output.clone()


class StateWorker:
    """Methods that sonde adds to a worker of vLLM; called by ``collective_rpc``."""

    model_runner: Any

    def sonde_modules(self) -> dict[str, str]:
        """Return the class of each module of the model, by name."""
        modules = self.model_runner.get_model().named_modules()
        return {name: type(module).__name__ for name, module in modules}

    def sonde_watch(self, paths: list[str]) -> None:
        """Take the states behind these modules."""
        if not hasattr(self, "_sonde"):
            self._sonde = Recording(self.model_runner)
        self._sonde.watch(paths)

    def sonde_requests(self) -> list[str]:
        """Return the requests that have states."""
        return [*self._sonde.states]

    def sonde_take(self, request: str, length: int) -> dict[str, Tensor]:
        """Return the states of a request, and forget it."""
        return self._sonde.take(request, length)

    def sonde_drop(self) -> None:
        """Forget the states of all requests."""
        self._sonde.states.clear()
