"""Errors of a model's own forward about its inputs, told as what is wrong with them."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from sonde.core.errors import InputError, SondeError
from sonde.core.inputs import InputBatch

ABOUT_INPUTS = re.compile(
    r"\b(sizes?|shapes?|dim|dims|dimensions?|channels?|unpack|out of range|dtype|data types?"
    r"|scalar type|arguments?)\b",
    re.IGNORECASE,
)


@contextlib.contextmanager
def forward_on(batch: InputBatch) -> Iterator[None]:
    """Say which inputs a model refused, such as images smaller than its patches.

    Raises
    ------
    InputError
        From the model's own error; all others pass as they are.
    """
    try:
        yield
    except (SondeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if ABOUT_INPUTS.search(str(error)) is None:
            raise
        shapes = [
            f"{name} {tuple(x.shape)}".strip()
            for name, x in (*(("", x) for x in batch.args), *batch.kwargs.items())
            if isinstance(x, Tensor)
        ]
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the model's forward failed on inputs of shape {', '.join(shapes) or 'unknown'} "
            f"({len(batch)} examples from {batch.ids[0]} on): {reason.rstrip('.')}. "
            "Give inputs of the kind and size that it is made for; --debug shows where it failed."
        ) from error
