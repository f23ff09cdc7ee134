"""Conversion of user input (tensors, arrays, lists) to tensors on one device."""

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde.core._kinds import is_list, is_tuple
from sonde.core.errors import InputError, ShapeError


def as_tensor(
    owner: str, values: Any, what: str, error: type[InputError | ShapeError] = InputError
) -> Tensor:
    """Return a tensor, an array or nested lists of real numbers as a tensor.

    Parameters
    ----------
    owner, what : str
        Who asks and for what, as the error says it.
    values : Tensor, array, or anything that numpy makes an array of
    error : type, default=InputError

    Raises
    ------
    InputError or ShapeError
        If an entry is not a real number, is sparse or masked, or lists have unequal length.

    Examples
    --------
    >>> as_tensor("f", [[1, 2], [3, 4]], "rows").shape
    torch.Size([2, 2])
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise _refusal(owner, what, f"a tensor of layout {values.layout}", error)
        if not values.is_complex():
            return values
        raise _refusal(owner, what, str(values.dtype), error)
    if np.ma.is_masked(values):
        raise _refusal(owner, what, "an array with masked entries", error)
    try:
        array = np.asarray(values)
    except ValueError as reason:
        raise _refusal(owner, what, "lists of unequal length", error) from reason
    real = array.dtype.kind == "O" and all(isinstance(v, Real) for v in array.flat)
    if real or array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        entry = f", such as {array.flat[0]!r:.40}" if array.size else ""
        raise _refusal(owner, what, f"{type(values).__name__} of {array.dtype}{entry}", error)
    backwards = any(step < 0 for step in array.strides)
    if backwards or not (array.dtype.isnative and array.flags.writeable):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array)


def on_device(values: Any, device: torch.device) -> Any:
    """Return a column, or columns of several sites, on the device of the rows.

    Only floats move: columns of integers (ids, groups, positions) are used on the CPU.

    Examples
    --------
    >>> on_device((torch.ones(2), torch.arange(2)), torch.device("meta"))[0].device.type
    'meta'
    """
    if is_tuple(values) or is_list(values):
        return type(values)(on_device(value, device) for value in values)
    if isinstance(values, Tensor) and values.device != device and values.is_floating_point():
        return values.to(device)
    return values


def device_of(values: Any) -> torch.device | None:
    """Return the device of the first tensor of a column, or None without a tensor."""
    if is_tuple(values) or is_list(values):
        return next((device for value in values if (device := device_of(value))), None)
    return values.device if isinstance(values, Tensor) else None


def _refusal(
    owner: str, what: str, got: str, error: type[InputError | ShapeError]
) -> InputError | ShapeError:
    return error(
        f"{owner}: expected {what} as numbers in an array without gaps, got {got}. Give a tensor, "
        "a numeric array, or lists of equal length."
    )
