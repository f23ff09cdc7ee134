"""Rows of a store as a data set of Ray Data, read where Ray runs."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sonde.core.errors import InputError
from sonde.core.wording import install_extra
from sonde.store.row_batches import NumberedRows


@dataclass(frozen=True)
class TakeRows:
    """Read the rows of a batch of numbers, as ``map_batches`` asks for it.

    Parameters
    ----------
    store : NumberedRows
    key : str or None
        The kind of rows.
    """

    store: NumberedRows
    key: str | None

    def __call__(self, batch: Any) -> dict[str, Any]:
        """Return the rows ``x`` of the numbers in ``id``, and the numbers as ``row``."""
        rows = np.asarray(batch["id"])
        taken = self.store.take(rows, self.key)
        plain = taken.float() if taken.dtype == torch.bfloat16 else taken  # numpy has no bfloat16
        return {"x": plain.numpy(), "row": rows}


def ray_rows(store: NumberedRows, key: str | None, n_rows: int, batch_size: int) -> Any:
    """Return a ``ray.data.Dataset`` of rows; see ``Store.to_ray``."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.data") is None:
        raise InputError(f"Store.to_ray needs the package ray. Run: {install_extra('ray')}")
    import ray.data

    numbers = ray.data.range(n_rows)
    return numbers.map_batches(TakeRows(store, key), batch_size=batch_size)
