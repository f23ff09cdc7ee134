"""State before the last forward passes of a layer, for gradient checkpointing.

``torch.utils.checkpoint`` runs a layer a second time in the backward pass. A layer whose forward
pass moves its own state (draws, codes, a queue) must start the second run from the state that the
first run started from, and must not move it again.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import StateError

PROBES, NEAR = 64, 1e-3


def is_recomputing() -> bool:
    """Return whether this forward pass runs inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


class EarlierStates:
    """The state before each of the last forward passes, by the tensor that was passed.

    Parameters
    ----------
    most : int
        Forward passes that are remembered.
    """

    def __init__(self, most: int) -> None:
        self._kept: deque[tuple[tuple[int, ...], Tensor, Any]] = deque(maxlen=most)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and save without the states, which belong to backward passes of this layer."""
        return EarlierStates, (self._kept.maxlen,)

    def keep(self, x: Tensor, state: Any) -> None:
        """Remember the state before a forward pass."""
        self._kept.append((tuple(x.shape), _probes(x), state))

    def of(self, x: Tensor, layer: str) -> Any:
        """Return the state before the forward pass of these values; the latest one if several fit.

        Raises
        ------
        StateError
            If no remembered forward pass had these values.
        """
        new, shape = _probes(x), tuple(x.shape)
        for size, old, state in reversed(self._kept):
            if size == shape and bool(((new - old).abs() <= NEAR * old.abs().max()).all()):
                return state
        raise StateError(
            f"{layer}: expected gradient checkpointing to run one of the last "
            f"{self._kept.maxlen} forward passes again, got other states. The layer's state has "
            "changed, so the gradient would belong to another state. Run the backward pass after "
            "each forward "
            "pass, or leave the layer out of the checkpointed part."
        )


def _probes(x: Tensor) -> Tensor:
    """Return a few entries, spread over the tensor."""
    flat = x.detach().reshape(-1)
    return flat[:: max(1, len(flat) // PROBES)].clone() if len(flat) else flat.new_zeros(1)
