"""Positions of rows in a plot: two principal directions, and nearest sampled rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.finite import finite_rows
from sonde.core.hashing import rank_key
from sonde.stats import nearest
from sonde.store.exporting.parts import ExportPart, text_of
from sonde.store.reading import Store

_ROWS_AT_ONCE = 1024

_NEIGHBORS = pa.struct(
    [pa.field("ids", pa.list_(pa.int64())), pa.field("distances", pa.list_(pa.float32()))]
)


@dataclass(frozen=True)
class View:
    """A sample of a site's rows, and the plane through it.

    Parameters
    ----------
    key : str
        The site.
    rows : Float[Tensor, "sample dim"]
        The finite rows with the smallest sampling keys, in float64.
    number : Int[Tensor, "sample"]
        Which rows of the export they are.
    ids : tuple of str
    mean : Float[Tensor, "dim"]
    plane : Float[Tensor, "dim 2"]
        Directions of largest variance of the sample; the entry of largest size in each is positive.
    neighbors : int
        How many nearest rows of the sample each row gets.
    """

    key: str
    rows: Float[Tensor, "sample dim"]
    number: Int[Tensor, "sample"]
    ids: tuple[str, ...]
    mean: Float[Tensor, "dim"]
    plane: Float[Tensor, "dim 2"]
    neighbors: int

    def fields(self) -> list[pa.Field]:
        """Return the columns of the plot."""
        fields_of_view = [pa.field("x", pa.float64()), pa.field("y", pa.float64())]
        if self.neighbors:
            fields_of_view += [
                pa.field("neighbors", _NEIGHBORS),
                pa.field("neighbor_ids", pa.list_(pa.string())),
            ]
        return fields_of_view

    def columns(self, part: ExportPart) -> list[pa.Array]:
        """Return the columns of some rows, with nulls for rows that are not finite."""
        x = part.batch.rows[self.key]
        finite, x = finite_rows(x), x.double()
        place = (x - self.mean) @ self.plane
        lost = (~finite).numpy()
        arrays = [pa.array(place[:, i].numpy(), mask=lost) for i in (0, 1)]
        if not self.neighbors:
            return arrays
        near, distance = self._nearest(x, part.first)
        sizes = finite.int() * near.shape[1]  # lists that are null are empty: older Arrow wants it
        ends = pa.array(np.cumsum([0, *sizes.tolist()], dtype=np.int32))
        index = pa.array(near[finite].reshape(-1).numpy())
        numbers = pa.array(self.number.numpy()).take(index)
        far = pa.array(distance[finite].reshape(-1).float().numpy())
        mask = pa.array(lost)
        lists = [pa.ListArray.from_arrays(ends, values) for values in (numbers, far)]
        texts = pa.array(self.ids, pa.string()).take(index)
        return [
            *arrays,
            pa.StructArray.from_arrays(lists, fields=list(_NEIGHBORS), mask=mask),
            pa.ListArray.from_arrays(ends, texts, mask=mask),
        ]

    def _nearest(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return the nearest other rows of the sample, and their distances."""
        k = min(self.neighbors, max(0, len(self.rows) - 1))
        if k == 0:
            return torch.zeros(len(x), 0, dtype=torch.int64), x.new_zeros(len(x), 0)
        near, distance = [], []
        for start in range(0, len(x), _ROWS_AT_ONCE):
            rows = x[start : start + _ROWS_AT_ONCE]
            own = torch.arange(first + start, first + start + len(rows))
            far, neighbours = nearest(rows, self.rows, k, group=own, group2=self.number)
            near.append(neighbours)
            distance.append(far)
        return torch.cat(near), torch.cat(distance)


def view_of(store: Store, key: str, m: int, neighbors: int) -> View:
    """Return the view of a site from a random sample of ``m`` rows, in one pass."""
    draw, number = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    rows: Tensor | None = None
    ids: list[str] = []
    first = 0
    for batch in store.select([key]).in_order():
        x, own_draw, at = _finite(batch, key, first)
        first += len(batch.example[key])
        rows = x if rows is None else torch.cat([rows, x])
        draw, number = torch.cat([draw, own_draw]), torch.cat([number, at])
        ids += list(_ids(batch, key, at - first + len(batch.example[key])))
        if len(draw) > 2 * m:
            rows, draw, number, ids = _smallest(m, rows, draw, number, ids)
    if rows is None:
        rows = torch.zeros(0, next(s.dim for s in store.schema if s.key == key)).double()
    rows, _, number, ids = _smallest(m, rows, draw, number, ids)
    mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    return View(key, rows, number, tuple(ids), mean, plane_of(rows - mean), neighbors)


def _finite(batch: Batch, key: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch's finite rows in float64, with their ranks and numbers."""
    x = batch.rows[key]
    kept = finite_rows(x)
    return x[kept].double(), rank_key(batch.draw(key))[kept], first + torch.nonzero(kept)[:, 0]


def _ids(batch: Batch, key: str, at: Tensor) -> Iterator[str]:
    ids = list(batch.ids)
    for i in batch.example[key][at].tolist():
        yield str(ids[i]) if isinstance(ids[i], str) else text_of(ids[i])


def _smallest(
    m: int, rows: Tensor, draw: Tensor, number: Tensor, ids: list[str]
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    order = torch.argsort(draw, stable=True)[:m]
    return rows[order], draw[order], number[order], [ids[i] for i in order.tolist()]


def plane_of(centred: Float[Tensor, "sample dim"]) -> Float[Tensor, "dim 2"]:
    """Return the two directions of largest variance, with zeros if there are fewer.

    Examples
    --------
    >>> plane_of(torch.tensor([[-3.0, 0.0], [3.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    plane = centred.new_zeros(centred.shape[1], 2)
    if not len(centred):
        return plane
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    for i in range(min(2, len(size))):
        if size[i] > 1e-12 * max(float(size[0]), 1e-300):
            row = directions[i]
            plane[:, i] = row * torch.sign(row[row.abs().argmax()])
    return plane
