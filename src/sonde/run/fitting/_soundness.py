"""Check that loaded states are possible: an intact file may still hold impossible values.

A field name means the same in every state, so the rules go by field name. The rules are applied
when a bundle is loaded, never while rows are observed.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.state import State, nonfinite_field

COUNTS = {
    "n", "n_classes", "n_examples", "n_nan", "count", "counts", "zeros", "pairs", "saturated",
    "skipped", "compactions", "cover", "apart",
}  # fmt: skip
SPREADS = {"scatter", "within", "diagonal"}
SQUARE_KINDS = ("pooled", "full")
ROUNDING = 1e-5


def check_states(states: dict[str, State | None], path: object) -> None:
    """Raise if no rows could have given a state.

    Raises
    ------
    StateError
        Naming the file, the state and the field.
    """
    for name, state in states.items():
        flaw = None if state is None else flaw_of(state)
        if flaw is not None:
            raise StateError(
                f"Fitted.load: {path} holds an invalid state {name}: {flaw}. Fit it again."
            )


def flaw_of(state: State) -> str | None:
    """Return the first impossible value of a state in words, or None if the state is sound.

    Examples
    --------
    >>> import torch
    >>> from sonde.stats import MomentsState
    >>> flaw_of(MomentsState(-1, torch.zeros(2), torch.zeros(2)))
    'n is negative'
    """
    assert is_dataclass(state)  # every state is
    lost = nonfinite_field(state)
    if lost is not None:
        return f"{lost} is not finite"
    for f in fields(state):
        value = getattr(state, f.name)
        if isinstance(value, State):
            inner = flaw_of(value)
            if inner is not None:
                return f"{f.name}.{inner}"
        elif f.name in COUNTS and _is_negative(value):
            return f"{f.name} is negative"
        elif isinstance(value, Tensor) and f.name in SPREADS:
            flaw = _flaw_of_spread(value, f.name, getattr(state, "scatter", None))
            if flaw is not None:
                return f"{f.name} {flaw}"
    return None


def _is_negative(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool((value < 0).any())
    return isinstance(value, int | float) and not value >= 0


def _flaw_of_spread(value: Tensor, name: str, kind: Any) -> str | None:
    if value.numel() == 0:
        return None
    square = name != "diagonal" and value.ndim >= 2 and value.shape[-1] == value.shape[-2]
    if isinstance(kind, str):
        square = square and kind in SQUARE_KINDS
    scale = ROUNDING * float(value.abs().max())
    if square and float((value - value.mT).abs().max()) > scale:
        return "is not symmetric"
    diagonal = value.diagonal(dim1=-2, dim2=-1) if square else value
    return "is negative" if bool((diagonal < -scale).any()) else None
