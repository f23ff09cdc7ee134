"""States: frozen dataclasses of tensors and plain values, and functions over their fields."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sonde.core._kinds import is_dict, is_list, is_tuple
from sonde.core.errors import StateError
from sonde.core.renaming import former_names

FINITE = {
    "mean", "mean_x", "mean_y", "sum_x", "sum_y", "reference_x", "reference_y", "scatter",
    "within", "cross", "low", "high", "diagonal",
}  # fmt: skip
"""Names of fields that are finite whenever the rows are; others may hold infinite scores."""


@dataclass(frozen=True)
class State:
    """Base class of the states of statistics.

    Fields are ``Tensor | int | float | str | bytes | None | State`` or tuples of these. A state has
    no size that grows with the number of rows, and is never changed in place.
    """


S = TypeVar("S", bound=State)

LATER = "later"
"""Key in the metadata of a parameter added later: older files lack it and mean its default."""


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` (a state, tuple or leaf) with ``change`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if is_tuple(value):
        return tuple(map_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        )
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a state, in the order of its fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_tuple(value):
        for item in value:
            yield from leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves(getattr(value, f.name))


def size_bytes(value: Any) -> int:
    """Return the bytes of all tensors in a state, a result, or a tuple of these.

    Parameters
    ----------
    value : object
        State, result, tensor, or tuple of these.

    Examples
    --------
    >>> size_bytes((torch.zeros(3), torch.zeros(2, dtype=torch.float64)))
    28
    """
    return sum(t.numel() * t.element_size() for t in leaves(value))


def nonfinite_field(value: Any, name: str = "") -> str | None:
    """Return the first field of ``FINITE`` that is not finite, or None."""
    if isinstance(value, Tensor):
        wrong = name.rpartition(".")[2] in FINITE and not bool(torch.isfinite(value).all())
        return name if wrong else None
    inner: dict[str, Any] = {}
    if is_tuple(value):
        inner = {f"{name}[{i}]": item for i, item in enumerate(value)}
    elif is_dataclass(value) and not isinstance(value, type):
        inner = {f"{name}.{f.name}".lstrip("."): getattr(value, f.name) for f in fields(value)}
    return next(
        (wrong_field for n, v in inner.items() if (wrong_field := nonfinite_field(v, n))), None
    )


def require_finite(states: Mapping[str, State | None]) -> None:
    """Raise if a field of ``FINITE`` holds NaN or infinity, since such a file cannot be read.

    Raises
    ------
    StateError
        Naming the state and the field.
    """
    for name, state in states.items():
        if lost := nonfinite_field(state):
            raise StateError(
                f"write_state: expected a finite state {name}, got NaN or infinity in {lost}, "
                "although the rows are finite. Look for such values in the other columns, or "
                "leave the method out."
            )


def equal(a: Any, b: Any) -> bool:
    """Return whether two states are equal bit by bit (NaN equals NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
    if is_tuple(a) and is_tuple(b):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if is_dataclass(a) and type(a) is type(b):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def _bits(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    return x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def canonical(value: Any, *, former: bool = False) -> Any:
    """Return parameters as JSON: tensors as hashes of their bytes, others by class and fields.

    A parameter that was added ``LATER`` is left out at its default, so that older files keep their
    identity; ``former`` gives renamed parameters their old names, as older files hold them.
    """
    if isinstance(value, Tensor):
        digest = hashlib.blake2b(_bits(value), digest_size=16).hexdigest()
        return {"tensor": [str(value.dtype), list(value.shape), digest]}
    inner = functools.partial(canonical, former=former)
    if is_dataclass(value) and not isinstance(value, type):
        old: Mapping[str, str] = former_names(type(value)) if former else {}
        return {
            "class": class_name(type(value)),
            **{
                old.get(f.name, f.name): inner(getattr(value, f.name))
                for f in fields(value)
                if not (f.metadata.get(LATER) and getattr(value, f.name) == f.default)
            },
        }
    if is_list(value) or is_tuple(value):
        return [inner(item) for item in value]
    if is_dict(value):
        return {str(k): inner(v) for k, v in sorted(value.items())}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"canonical: a parameter must be a tensor or a plain value, got {value!r}")


def class_name(cls: type) -> str:
    """Return a class's name in digests, with its module unless the class is from sonde."""
    return (
        cls.__name__
        if cls.__module__.startswith("sonde.")
        else f"{cls.__module__}:{cls.__qualname__}"
    )


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any, *, former: bool = False) -> str:
    """Return the identity of a frozen dataclass: 32 hexadecimal digits from its parameters."""
    text = canonical_json(canonical(value, former=former))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
