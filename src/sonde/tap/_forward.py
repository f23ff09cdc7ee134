"""Errors of a model's own forward about sizes, told as what is wrong with the inputs."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from sonde.core.errors import InputError, SondeError
from sonde.core.inputs import InputBatch

ABOUT_SIZES = re.compile(r"\b(sizes?|shapes?)\b", re.IGNORECASE)


@contextlib.contextmanager
def forward_on(batch: InputBatch) -> Iterator[None]:
    """Say which inputs a model refused for their size, such as images smaller than its patches.

    Raises
    ------
    InputError
        From the model's own error; all others pass as they are.
    """
    try:
        yield
    except (SondeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError) as error:
        if ABOUT_SIZES.search(str(error)) is None:
            raise
        shapes = [
            f"{name} {tuple(x.shape)}".strip()
            for name, x in (*(("", x) for x in batch.args), *batch.kwargs.items())
            if isinstance(x, Tensor)
        ]
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the model's forward failed on inputs of shape {', '.join(shapes) or 'unknown'} "
            f"({len(batch)} examples from {batch.ids[0]} on): {reason}. "
            "Give inputs of a size that it is made for."
        ) from error
