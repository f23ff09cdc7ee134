"""Data sets of Ray Data as rows."""

from collections.abc import Iterator
from typing import Any, final


@final
class RayRows:
    """The rows of a ``ray.data.Dataset`` in its order, each time anew.

    Parameters
    ----------
    found : ray.data.Dataset
        Data set whose rows are read; each walk over the rows runs its pipeline.
    """

    def __init__(self, found: Any) -> None:
        self._found = found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the order of the data set's blocks."""
        options = self._found.context.execution_options
        before, options.preserve_order = options.preserve_order, True
        try:
            yield from self._found.iter_rows()
        finally:
            options.preserve_order = before


def is_ray_data(items: Any) -> bool:
    """Return whether an object is a data set of Ray Data."""
    kind = type(items)
    return kind.__module__.startswith("ray.data.") and hasattr(kind, "iter_rows")
