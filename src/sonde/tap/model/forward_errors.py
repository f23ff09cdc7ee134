"""Errors of a model's own forward pass, with an explanation of the refused inputs."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sonde.core.errors import IN_FORWARD, ForwardError, MachineError, SondeError, is_out_of_memory
from sonde.core.inputs import InputBatch
from sonde.core.wording import plural

ABOUT_SIZES = re.compile(r"\b(sizes?|shapes?)\b|index out of range in self", re.IGNORECASE)
ABOUT_INPUTS = re.compile(
    r"\b(sizes?|shapes?|dims?|dimensions?|channels?|dtype|data types?|scalar types?"
    r"|values to unpack|out of range)\b|forward\(\) (got|missing|takes)",
    re.IGNORECASE,
)
PACKAGE = Path(__file__).parents[2]
OBJECTIVES = Path(__file__).with_name("objectives.py")


@contextlib.contextmanager
def forward_on(batch: InputBatch, first: bool = False) -> Iterator[None]:
    """Add to errors the inputs that a model refused, such as images below its patch size.

    Parameters
    ----------
    batch : InputBatch
    first : bool, default=False
        Whether the model has not run before: then inputs of another kind are likely, afterwards
        only inputs of another size.

    Raises
    ------
    ForwardError
        From the model's own error; all others pass as they are, with a note of the examples.
    """
    kinds = (RuntimeError, ValueError, IndexError, *((TypeError,) if first else ()))
    try:
        yield
    except (SondeError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        message = str(error)
        examples = f"{plural(len(batch), 'example')} from {batch.ids[0]} on"
        if not _is_ours(error):
            error.add_note(f"{IN_FORWARD}{examples}")
        if isinstance(error, NotImplementedError) or not isinstance(error, kinds):
            raise
        about = (ABOUT_INPUTS if first else ABOUT_SIZES).search(message)
        if about is None or message.startswith("CUDA error") or _is_ours(error):
            raise
        shapes = [
            f"{name} {tuple(x.shape)}".strip()
            for name, x in (*(("", x) for x in batch.args), *batch.kwargs.items())
            if isinstance(x, Tensor)
        ]
        reason = message.partition("\n")[0]
        raise ForwardError(
            "the model's forward pass failed on inputs of shape "
            f"{', '.join(shapes) or 'unknown'} ({examples}): {reason.rstrip('.')}. Give inputs "
            "of the type and size that the model expects."
        ) from error


@contextlib.contextmanager
def advising(batch: InputBatch) -> Iterator[None]:
    """Raise errors like ``forward_on``, with advice if memory runs out."""
    try:
        with forward_on(batch):
            yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SondeError) or not is_out_of_memory(error):
            raise
        raise MachineError(
            f"out of memory with {plural(len(batch), 'example')} in a forward pass. Try "
            f"--batch-size {max(1, len(batch) // 2)}."
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Return whether an error came from this package or an objective, not from the model."""
    trace = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename) for frame, _ in trace]
    return OBJECTIVES in files or (bool(files) and PACKAGE in files[-1].parents)
