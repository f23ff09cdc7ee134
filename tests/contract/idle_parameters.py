"""Search for parameters that change nothing, whatever their value."""

import contextlib
import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Outcome = Callable[[Any], Any]
"""Returns all that a method makes of fixed inputs, in a form that ``==`` compares."""


def plain(value: Any) -> Any:
    """Return a value in a form that ``==`` compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().double().tolist()
    if isinstance(value, np.ndarray):
        return plain(torch.from_numpy(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = (f.name for f in dataclasses.fields(value))
        return {name: plain(getattr(value, name)) for name in known}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def others(value: Any, hint: Any) -> Iterator[Any]:
    """Yield other values that a parameter may take."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Literal:
            yield from typing.get_args(kind)
        if kind is type(None) and value is not None:
            yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, max(1, value // 2), value * 2, 1, 2, 3, 7, 0, value + 40)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value + 0.1, 0.5, 0.9, 1.5, -value, value / 1000)
    elif value is None:
        yield from ("3", ("3",), torch.full((1, 1, 1), 0.3))  # names of layers of the small nets
        yield from (1, 2, 0.5, True, (0.0, 3.0), (1.0, 2.0, 3.0))
    elif hint is str:
        yield from ("position", "group")
    elif isinstance(value, str):
        yield from (0.3, 1, 2, "8")
    elif isinstance(value, torch.Tensor):
        yield 2 * value + 0.1
    elif isinstance(value, nn.Module):
        yield _moved(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        for field in dataclasses.fields(value):
            for other in others(getattr(value, field.name), hints.get(field.name)):
                with contextlib.suppress(Exception):  # a value that the class refuses
                    yield dataclasses.replace(value, **{field.name: other})
    elif isinstance(value, tuple | list) and value:
        yield from (value[:1], value[:-1])
        if isinstance(value[0], int | float):
            yield type(value)((2 * value[0], *value[1:]))


def idle(
    cls: type[Any],
    examples: Sequence[dict[str, Any]],
    outcome: Outcome,
    unseen: typing.Collection[str] = (),
) -> list[str]:
    """Return the parameters of a class that change nothing.

    Parameters
    ----------
    cls : type
    examples : sequence of dict
        Parameters to start from; each is changed alone.
    outcome : callable
    unseen : collection of str
        ``Class.parameter``, or the parameter of all, where the inputs cannot show an effect.
    """
    hints = {**_hints(cls), **_hints(cls.__init__)}
    signature = inspect.signature(cls)
    made = [(given, made) for given in examples or [{}] if (made := _made(cls, given)) is not None]
    known = [_seen(outcome, method) for _, method in made]
    found = []
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        values = [given.get(name, parameter.default) for given, _ in made]
        changed = (
            _seen(outcome, other) != seen
            for (given, _), seen, own in zip(made, known, values, strict=True)
            for value in (*others(own, hints.get(name)), *values)
            if (other := _made(cls, {**given, name: value})) is not None
        )
        if not {name, f"{cls.__name__}.{name}"} & {*unseen} and not any(changed):
            found.append(name)
    return found


def _moved(module: nn.Module) -> nn.Module:
    """Return a copy with other weights."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for x in (*other.parameters(), *other.buffers()):
            if x.is_floating_point():
                x.mul_(1.5)
    return other


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError):  # names under TYPE_CHECKING, or no annotations at all
        return {}


def _made(cls: type[Any], given: dict[str, Any]) -> Any:
    """Return a method with these parameters, or None if it refuses them."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            return cls(**given)
    except Exception:  # a value that is refused, in whatever way, shows nothing here
        return None


def _seen(outcome: Outcome, method: Any) -> Any:
    """Return a method's outcome; a refusal of the inputs is an outcome too."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            return outcome(method)
    except Exception as error:  # other laws ask how a method ends
        return type(error).__name__
