"""A hashed fraction of token or patch rows, equal for every reader."""

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.store._subset import with_rows


@final
class KeptRows(DerivedStream):
    """One row in ``every`` for token and patch readings; all rows of pooled readings.

    A row stays if its draw of purpose ``subsample`` is a multiple of ``every``: the same rows at
    every site, in any order, for any batch size.

    Parameters
    ----------
    inner : Stream
        Stream whose rows are thinned.
    every : int
        Number of rows from which a single row is kept, at least 1.

    Raises
    ------
    InputError
        If ``every`` is below 1, or the stream has one row for each example everywhere.

    Examples
    --------
    >>> KeptRows(Stream.of(torch.zeros(3, 2)), 8)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sonde.core.errors.InputError: KeptRows: no site has more than one row for each example...
    """

    def __init__(self, inner: Stream, every: int) -> None:
        if every < 1:
            raise InputError(f"KeptRows: expected one row in 1 or more, got {every}.")
        self.inner, self.every, self.seed = inner, every, inner.seed
        if every > 1 and all(_is_pooled(s) for s in inner.schema):
            raise InputError(
                "KeptRows: no site has more than one row for each example, so there are no "
                "rows to choose from. Read tokens or patches, or leave --keep out."
            )

    def identity(self) -> dict[str, Any]:
        """Return the identity of the whole stream, and the kept fraction."""
        return {**self.inner.identity(), "keep": self.every}

    def changed(self, batch: Batch) -> Batch:
        """Return the kept rows of a batch."""
        pooled = {s.key for s in self.schema if _is_pooled(s)}

        def mask(key: str) -> Bool[Tensor, "_row"] | None:
            if key in pooled:
                return None
            words = batch.draw(key, "subsample").numpy().view(np.uint64)
            return torch.as_tensor(words % np.uint64(self.every) == 0)

        return with_rows(batch, mask)


def _is_pooled(schema: SiteSchema) -> bool:
    return schema.reducer.one_row or schema.axes == "row dim"
