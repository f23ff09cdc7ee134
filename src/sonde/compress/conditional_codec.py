"""Code rows by their nearest entry in a dictionary that encoder and decoder share.

For features that form clusters, such as patches of similar pictures. The dictionary ships with the
codec: its bytes count if few rows are coded.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.compress._range_coder import normal_bytes, read_normal, read_table, table_bytes
from sonde.compress._wire import Reader, refuse_others, shape_bytes, tensors_key
from sonde.core.codec import Codec
from sonde.core.errors import InputError
from sonde.core.random_state import kept_random_state

SMALLEST = 0.11
"""Least standard deviation of a difference, in steps, so that no number has probability 0."""


@final
@dataclass(frozen=True, eq=False)
class ConditionalCodec(Codec):
    """Rows as the index of the nearest dictionary entry, and the rounded difference from it.

    Numbers of entries are written by a table of how often each entry was nearest in the fit;
    differences by normal distributions with the spread of each channel in the fit. A row that
    equals an entry takes almost no bits. With a single entry, rows are coded around their mean.

    Range        float32 in the encoded shape; off by half a step at most.
    Cost         O(n entries dim).
    Assumes      rows like those of the fit. Both sides hold the same fitted codec: the stream has
                 its fingerprint.
    Differs      from the paper: the nearest entry itself is the reference, no net fuses several;
                 spreads do not depend on a further latent.

    Parameters
    ----------
    entries : Float[Tensor, "entry dim"]
        Entries of the dictionary.
    shares : Float[Tensor, "entry"]
        How often each entry is expected.
    spreads : Float[Tensor, "dim"]
        Standard deviation of the differences from an entry, in steps.
    step : float
        Step size of the rounding.

    Examples
    --------
    >>> import torch
    >>> rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    >>> rows += 50.0 * (torch.arange(300) % 4)[:, None]
    >>> one, four = (ConditionalCodec.fit(rows, n, step=0.5) for n in (1, 4))
    >>> len(four.encode(rows)) < 0.8 * len(one.encode(rows))
    True

    References
    ----------
    wu2025clc
    """

    entries: Float[Tensor, "entry dim"]
    shares: Float[Tensor, "entry"]
    spreads: Float[Tensor, "dim"]
    step: float
    paper: ClassVar[str] = "wu2025clc"
    examples: ClassVar[tuple[dict, ...]] = ()

    @staticmethod
    def fit(
        rows: Float[Tensor, "row dim"], size: int = 64, step: float = 1.0, seed: int = 0
    ) -> "ConditionalCodec":
        """Return a codec whose entries are the k-means centres of rows.

        Parameters
        ----------
        rows : Float[Tensor, "row dim"]
        size : int, default=64
            Entries, at most as many as rows.
        step : float, default=1.0
            Differences are rounded to multiples of this step.
        seed : int, default=0
        """
        if rows.ndim != 2 or not 1 <= size <= len(rows) or not step > 0:
            raise InputError(
                f"ConditionalCodec.fit: expected rows, 1 to {len(rows)} entries and a step above "
                f"0, got shape {tuple(rows.shape)}, {size} and {step:g}."
            )
        with kept_random_state():
            from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]

        x = rows.detach().cpu().double()
        means: Any = KMeans(size, n_init=2, random_state=seed)  # pyright: ignore[reportArgumentType]
        entries = torch.from_numpy(np.asarray(means.fit(x.numpy()).cluster_centers_))
        nearest = nearest_entries(x, entries)
        shares = torch.bincount(nearest, minlength=size) + 0.5
        spreads = ((x - entries[nearest]) / step).square().mean(0).sqrt().clamp(min=SMALLEST)
        return ConditionalCodec(entries, shares.double() / shares.sum(), spreads, step)

    @property
    def width(self) -> int:
        """Width of the fitted rows."""
        return self.entries.shape[1]

    def most_lost(self, x: Tensor) -> float:
        """Return the largest fraction of the energy lost by rounding: half a step per entry."""
        norm = float(x.double().square().sum())
        return (1 + 1e-6) * x.numel() * self.step**2 / 4 / norm if norm else float("inf")

    def pack(self, x: Tensor) -> bytes:
        """Return the payload: shape, fingerprint, entry indices and rounded differences."""
        rows = x.double().reshape(-1, self.width)
        nearest = nearest_entries(rows, self.entries)
        codes = ((rows - self.entries[nearest]) / self.step).round().reshape(-1).numpy()
        numbers = b""
        if len(self.entries) > 1:
            numbers = table_bytes("ConditionalCodec", nearest.numpy(), self._table(len(rows)))
        differences = normal_bytes("ConditionalCodec", codes, *self._normals(len(rows)))
        return shape_bytes(x) + self._key() + numbers + differences

    def unpack(self, payload: bytes) -> Tensor:
        """Return the entries plus the differences."""
        reader = Reader("ConditionalCodec", payload)
        shape = reader.shape()
        refuse_others(reader, self._key())
        n = torch.Size(shape[:-1]).numel()
        nearest = torch.zeros(n, dtype=torch.int64)
        if len(self.entries) > 1:
            nearest = torch.from_numpy(read_table(reader, self._table(n)))
        codes = torch.from_numpy(read_normal(reader, *self._normals(n))).double()
        rows = self.entries[nearest] + self.step * codes.reshape(n, self.width)
        return rows.float().reshape(shape)

    def _table(self, n: int) -> np.ndarray:
        return self.shares.expand(n, -1).numpy()

    def _normals(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        scales = self.spreads.repeat(n).numpy()
        return 0 * scales, scales

    def _key(self) -> bytes:
        step = torch.tensor(self.step, dtype=torch.float64)
        return tensors_key(self.entries, self.shares, self.spreads, step)


def nearest_entries(
    rows: Float[Tensor, "row dim"], entries: Float[Tensor, "entry dim"]
) -> Int[Tensor, "row"]:
    """Return the index of the nearest entry to each row."""
    if not len(rows):
        return torch.zeros(0, dtype=torch.int64)
    parts = rows.split(4096)
    return torch.cat([torch.cdist(part, entries).argmin(1) for part in parts])
