"""The checker of annotations under pytest: beartype, with whole numbers accepted as floats.

jaxtyping's wrapper binds the arguments of every call anew to compare sizes among them, which took
two fifths of the time of a scan. It is put around what has an array in its signature alone, and
beartype around all else, each at the first call, since many functions are never called in a
process. What it says depends on nothing but the classes, sizes and dtypes of what goes in and comes
out, so a call whose like was found right is not checked again.
"""

import dataclasses
import inspect
import threading
import typing
from collections.abc import Callable, Collection
from functools import partial, wraps
from typing import Any, Literal

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_compares_sizes = jaxtyping.jaxtyped
_LONGEST = 8  # of a list or tuple whose entries are looked at one by one
_LARGEST, _LONGEST_TEXT = 100, 50  # of the values that a ``Literal`` may name


def install() -> None:
    """Check every function and dataclass of sonde that is imported from now on."""
    jaxtyping.jaxtyped = _decorator
    jaxtyping.install_import_hook("sonde", "shape_checker.check")


def _decorator(*context: str, typechecker: Any = None) -> Any:
    if context:
        return _compares_sizes(*context)
    compares_sizes = _compares_sizes(typechecker=typechecker)

    def decorate(found: Any) -> Any:
        if inspect.isclass(found):
            if dataclasses.is_dataclass(found) and "__init__" in vars(found):
                found.__init__ = decorate(found.__init__)
            return found
        if any(map(_has_array, found.__annotations__.values())):
            return _at_first_call(
                found, partial(_once_for_each_kind, compares_sizes=compares_sizes)
            )
        return found if "<locals>" in found.__qualname__ else _at_first_call(found, typechecker)

    return decorate


def _at_first_call(found: Callable[..., Any], checks: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a check that is built when it is first called."""
    checked: Any = None

    @wraps(found)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = checks(found)
        return checked(*args, **kwargs)

    return call


def _has_array(annotation: Any) -> bool:
    """Return whether an annotation names an array with its sizes; texts may."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    if typing.get_origin(annotation) is Literal:
        return False
    inside = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(map(_has_array, inside))


def _once_for_each_kind(found: Callable[..., Any], compares_sizes: Any) -> Callable[..., Any]:
    """Return the function, checked where arguments or results are of a kind not seen before."""
    here = threading.local()

    @wraps(found)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return here.__dict__.pop("result") if "result" in here.__dict__ else found(*args, **kwargs)

    checked, right = compares_sizes(inner), {}

    @wraps(found)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            given = (*map(_kind, args), *kwargs, *map(_kind, kwargs.values()))
        except _ManyKindsError:
            return checked(*args, **kwargs)
        results = right.get(given)
        result = (checked if results is None else found)(*args, **kwargs)
        try:
            kind = _kind(result)
        except _ManyKindsError:
            kind = None
        if results is None:
            right[given] = {kind}
        elif kind is None or kind not in results:
            here.result = result
            checked(*args, **kwargs)
            results.add(kind)
        return result

    return call


class _ManyKindsError(Exception):
    """The value is of a class whose entries are not all looked at."""


def _kind(value: Any) -> Any:
    """Return all of a value that a check can depend on."""
    found = value.__class__
    if found in _ARRAYS:
        if found is not np.ndarray and value.is_nested:  # it has no sizes
            raise _ManyKindsError
        return found, value.shape, value.dtype
    if found in _BY_VALUE and (found is not int or abs(value) < _LARGEST):
        return found, value
    if found is str:
        return found, value[:_LONGEST_TEXT]
    if found is tuple or found is list:
        if len(value) > _LONGEST:
            raise _ManyKindsError
        return found, *map(_kind, value)
    if issubclass(found, _HELD):
        raise _ManyKindsError
    return value if isinstance(value, type) else found


_ARRAYS = {torch.Tensor, torch.nn.Parameter, np.ndarray}
_BY_VALUE = {type(None), bool, int, torch.dtype, torch.device}
_HELD = (Collection, torch.Tensor)
