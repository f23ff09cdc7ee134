"""State fields as JSON values, with tensors stored separately; decoded by expected types."""

import math
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxtyping import jaxtyped  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core._kinds import is_dict, is_list, is_tuple
from sonde.core.errors import StateError
from sonde.core.state import State

LARGEST = 1 << 53
DEEPEST = 16
_TAGS = {float: "$float", str: "$str", bytes: "$bytes", int: "$int"}


def encode(value: Any, put: Callable[[Tensor], str], where: str) -> Any:
    """Return a state, tuple or leaf as JSON; ``put`` stores a tensor and returns its name."""
    if isinstance(value, Tensor):
        return put(value)
    if is_tuple(value):
        return [encode(item, put, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, State) and is_dataclass(value):
        return {
            f.name: encode(getattr(value, f.name), put, f"{where}.{f.name}")
            for f in fields(value)
            if f.init
        }
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        return value if abs(value) < LARGEST else {"$int": hex(value)}
    if type(value) is float:
        return {"$float": _float_text(value)}
    if type(value) is str:
        return {"$str": value}
    if type(value) is bytes:
        return {"$bytes": value.hex()}
    raise TypeError(
        f"write_state: a state holds tensors, plain values, states and tuples of these, "
        f"got {type(value).__name__} at {where}."
    )


def decode(
    value: Any, wanted: Any, get: Callable[[str], Tensor], where: str, depth: int = 0
) -> Any:
    """Return the value from its JSON, built by the type ``wanted`` only.

    Parameters
    ----------
    value : JSON value
    wanted : type or annotation
        What the field may be. The file has no say in it.
    get : callable
        Returns the tensor of a name.
    where : str
        Path of the field, for errors.

    Raises
    ------
    StateError
        If the value is not of that type.
    """
    if depth > DEEPEST:
        raise StateError(f"{where}: nested more than {DEEPEST} levels deep.")
    origin = get_origin(wanted)
    if origin in (Union, UnionType):
        return _member(value, get_args(wanted), get, where, depth)
    if origin is Annotated:
        return decode(value, get_args(wanted)[0], get, where, depth)
    if origin is tuple or wanted is tuple:
        return _tuple(value, get_args(wanted), get, where, depth)
    if isclass(wanted) and issubclass(wanted, State) and is_dataclass(wanted):
        return _state(value, wanted, get, where, depth)
    if _is_tensor(wanted):
        return _tensor(value, wanted, get, where)
    plain = _plain(value, where)
    if origin is Literal:
        if not any(type(plain) is type(option) and plain == option for option in get_args(wanted)):
            raise StateError(f"{where}: expected one of {get_args(wanted)}, got {plain!r}.")
        return plain
    kinds: dict[Any, tuple[Any, ...]] = {float: (float, int), None: (NoneType,)}
    allowed = kinds.get(wanted, (wanted,))
    if wanted is not Any and type(plain) not in allowed:
        raise StateError(f"{where}: expected {_name(wanted)}, got {type(plain).__name__}.")
    return plain


def _member(
    value: Any, options: tuple[Any, ...], get: Callable[[str], Tensor], where: str, depth: int
) -> Any:
    reasons: list[str] = []
    for option in options:
        try:
            return decode(value, option, get, where, depth + 1)
        except StateError as error:
            reasons.append(str(error))
    raise StateError(
        reasons[0]
        if len(reasons) == 1
        else f"{where}: the value matches none of the {len(options)} allowed types: {reasons[0]}"
    )


def _tuple(
    value: Any, items: tuple[Any, ...], get: Callable[[str], Tensor], where: str, depth: int
) -> tuple[Any, ...]:
    if not is_list(value):
        raise StateError(f"{where}: expected a list, got {type(value).__name__}.")
    if not items:
        items = (Any, ...)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    elif items == ((),):
        items = ()
    if len(items) != len(value):
        raise StateError(f"{where}: expected {len(items)} entries, got {len(value)}.")
    return tuple(
        decode(entry, item, get, f"{where}[{i}]", depth + 1)
        for i, (entry, item) in enumerate(zip(value, items, strict=True))
    )


def _state(
    value: Any, wanted: type[State], get: Callable[[str], Tensor], where: str, depth: int
) -> State:
    types = _field_types(wanted)
    if not is_dict(value) or value.keys() != types.keys():
        got = sorted(value) if is_dict(value) else type(value).__name__
        raise StateError(f"{where}: expected the fields {sorted(types)}, got {got}.")
    members = {
        name: _field(value[name], kind, get, f"{where}.{name}", depth + 1)
        for name, kind in types.items()
    }
    with jaxtyped("context"):
        for name, tensor in members.items():
            if isinstance(tensor, Tensor) and not isinstance(tensor, _tensors_in(types[name])):
                raise _other_shape(tensor, types[name], f"{where}.{name}")
    try:
        return wanted(**members)
    except Exception as error:
        raise StateError(f"{where}: {wanted.__name__} rejects these values: {error}") from error


def _field(value: Any, wanted: Any, get: Callable[[str], Tensor], where: str, depth: int) -> Any:
    """Return the value of a field; tensor shapes are checked after all fields are read."""
    return (
        _got(value, get, where) if _is_tensor(wanted) else decode(value, wanted, get, where, depth)
    )


def _got(value: Any, get: Callable[[str], Tensor], where: str) -> Tensor:
    if not isinstance(value, str):
        raise StateError(f"{where}: expected a tensor, got {type(value).__name__}.")
    return get(value)


def _tensor(value: Any, wanted: Any, get: Callable[[str], Tensor], where: str) -> Tensor:
    tensor = _got(value, get, where)
    with jaxtyped("context"):  # sizes of a caller that checks its own with jaxtyping say nothing
        fits = isinstance(tensor, wanted)
    if not fits:
        raise _other_shape(tensor, wanted, where)
    return tensor


def _other_shape(tensor: Tensor, wanted: Any, where: str) -> StateError:
    return StateError(
        f"{where}: expected {_name(wanted)}, got {tensor.dtype} of shape {tuple(tensor.shape)} "
        "(axes of one name must have one length)."
    )


def _tensors_in(wanted: Any) -> tuple[Any, ...]:
    """Return the tensor types that an annotation allows."""
    if get_origin(wanted) in (Union, UnionType):
        return tuple(t for option in get_args(wanted) for t in _tensors_in(option))
    if get_origin(wanted) is Annotated:
        return _tensors_in(get_args(wanted)[0])
    return (wanted,) if _is_tensor(wanted) else ()


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < LARGEST:
        return value
    if is_dict(value) and len(value) == 1:
        [(tag, text)] = value.items()
        try:
            decoded = _tagged(tag, text)
        except (ValueError, TypeError, AttributeError, struct.error):
            decoded = None
        if decoded is not None:
            return decoded
    raise StateError(f"{where}: expected a plain value, got {str(value)[:60]!r}.")


def _tagged(tag: str, text: Any) -> Any:
    """Return the value of ``{tag: text}``, or None if ``encode`` would not write it."""
    if tag == "$str" and isinstance(text, str):
        return text
    if not isinstance(text, str) or len(text) > 1 << 20:
        return None
    if tag == "$bytes":
        decoded: Any = bytes.fromhex(text)
        return decoded if decoded.hex() == text else None
    if tag == "$int" and len(text) <= 80:
        decoded = int(text, 16)
        return decoded if hex(decoded) == text and abs(decoded) >= LARGEST else None
    if tag == "$float" and len(text) <= 40:
        decoded = _float_value(text)
        return decoded if _float_text(decoded) == text else None
    return None


def _float_text(value: float) -> str:
    return f"nan:{struct.pack('>d', value).hex()}" if math.isnan(value) else value.hex()


def _float_value(text: str) -> float:
    if text.startswith("nan:"):
        return struct.unpack(">d", bytes.fromhex(text[4:]))[0]
    return float.fromhex(text)


def _is_tensor(wanted: Any) -> bool:
    return isclass(wanted) and (
        issubclass(wanted, Tensor) or getattr(wanted, "array_type", None) is Tensor
    )


def _name(wanted: Any) -> str:
    return getattr(wanted, "__name__", str(wanted))


@cache
def _field_types(wanted: type[State]) -> dict[str, Any]:
    hints = get_type_hints(wanted)
    return {f.name: hints[f.name] for f in fields(wanted) if f.init}
