"""Code rows by their nearest entries in a dictionary that encoder and decoder share.

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
from sonde.compress._synthesis import Synthesis, learned_synthesis
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

    With ``references`` a row has the numbers of several entries, nearest first: the first by the
    table, each next one by a table of the entries that follow another. A network that is trained to
    save bits makes one reference of these entries, a weighted mean with a correction, and the
    spreads of the row's differences.

    Range        float32 in the encoded shape; off by half a step at most.
    Cost         O(n entries dim); with ``references`` ``updates`` steps of training in the fit.
    Assumes      rows like those of the fit. Both sides hold the same fitted codec: the stream has
                 its fingerprint.
    Differs      from the paper: the entries' numbers are sent, where it finds entries by features
                 of the picture; spreads depend on the entries, not on a further latent.

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
    follows : Float[Tensor, "entry entry"], optional
        How often each entry is expected to be the next nearest after another.
    synthesis : tuple of Tensor, default=()
        Weights of the network that makes one reference of several entries; empty: the nearest
        entry is the reference.

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
    follows: Float[Tensor, "entry entry"] | None = None
    synthesis: tuple[Tensor, ...] = ()
    paper: ClassVar[str] = "wu2025clc"
    examples: ClassVar[tuple[dict, ...]] = ()

    @staticmethod
    def fit(
        rows: Float[Tensor, "row dim"],
        size: int = 64,
        step: float = 1.0,
        seed: int = 0,
        references: int = 0,
        hidden: int = 32,
        updates: int = 600,
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
            Seed of the centres, and of the network's weights and batches.
        references : int, default=0
            Number of entries that a network turns into a row's reference, at most ``size``. 0
            trains no network and takes the nearest entry as it is.
        hidden : int, default=32
            Hidden units of the network.
        updates : int, default=600
            Steps of its training, on 256 rows each.

        Raises
        ------
        InputError
            If a setting is out of range, or a row has a number that is not finite.
        """
        if rows.ndim != 2 or not 1 <= size <= len(rows) or not step > 0:
            raise InputError(
                f"ConditionalCodec.fit: expected rows, 1 to {len(rows)} entries and a step above "
                f"0, got shape {tuple(rows.shape)}, {size} and {step:g}."
            )
        if broken := int((~torch.isfinite(rows)).any(1).sum()):
            raise InputError(
                f"ConditionalCodec.fit: expected finite numbers, got {broken} of {len(rows)} rows "
                "with others."
            )
        if not 0 <= references <= size or hidden < 1 or updates < 0:
            raise InputError(
                f"ConditionalCodec.fit: expected 0 to {size} references, at least 1 hidden unit "
                f"and no negative number of updates, got {references}, {hidden} and {updates}."
            )
        with kept_random_state():
            from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]

        x = rows.detach().cpu().double()
        means: Any = KMeans(size, n_init=2, random_state=seed)  # pyright: ignore[reportArgumentType]
        entries = torch.from_numpy(np.asarray(means.fit(x.numpy()).cluster_centers_))
        chosen = nearest_entries(x, entries, max(references, 1))
        nearest = chosen[:, 0]
        counts = (torch.bincount(nearest, minlength=size) + 0.5).double()
        spreads = ((x - entries[nearest]) / step).square().mean(0).sqrt().clamp(min=SMALLEST)
        shares = counts / counts.sum()
        if references == 0:
            return ConditionalCodec(entries, shares, spreads, step)
        follows = shares.repeat(size, 1)  # one pseudo-count for each former entry
        pairs = (chosen[:, :-1].flatten(), chosen[:, 1:].flatten())
        follows.index_put_(pairs, torch.ones(len(pairs[0]), dtype=shares.dtype), accumulate=True)
        net = learned_synthesis(x, entries, chosen, spreads, step, hidden, updates, seed, SMALLEST)
        follows /= follows.sum(1, keepdim=True)
        return ConditionalCodec(entries, shares, spreads, step, follows, net.weights)

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
        chosen = nearest_entries(rows, self.entries, self.references)
        expected, scales = self._expected(chosen)
        codes = ((rows - expected) / self.step).round().reshape(-1).numpy()
        numbers = b""
        if len(self.entries) > 1:
            numbers = table_bytes("ConditionalCodec", chosen[:, 0].numpy(), self._table(len(rows)))
        if self.follows is not None:
            for former, entry in zip(chosen.T[:-1], chosen.T[1:], strict=True):
                table = self.follows[former].numpy()
                numbers += table_bytes("ConditionalCodec", entry.numpy(), table)
        differences = normal_bytes("ConditionalCodec", codes, 0 * scales, scales)
        return shape_bytes(x) + self._key() + numbers + differences

    def unpack(self, payload: bytes) -> Tensor:
        """Return the references plus the differences."""
        reader = Reader("ConditionalCodec", payload)
        shape = reader.shape()
        refuse_others(reader, self._key())
        n = torch.Size(shape[:-1]).numel()
        chosen = torch.zeros(n, self.references, dtype=torch.int64)
        if len(self.entries) > 1:
            chosen[:, 0] = torch.from_numpy(read_table(reader, self._table(n)))
        if self.follows is not None:
            for i in range(1, self.references):
                table = self.follows[chosen[:, i - 1]].numpy()
                chosen[:, i] = torch.from_numpy(read_table(reader, table))
        expected, scales = self._expected(chosen)
        codes = torch.from_numpy(read_normal(reader, 0 * scales, scales)).double()
        rows = expected + self.step * codes.reshape(n, self.width)
        return rows.float().reshape(shape)

    @property
    def references(self) -> int:
        """Number of entries whose numbers a row has."""
        return self.synthesis[2].shape[1] // self.width if self.synthesis else 1

    def _table(self, n: int) -> np.ndarray:
        return self.shares.expand(n, -1).numpy()

    def _expected(self, chosen: Int[Tensor, "row n"]) -> tuple[Tensor, np.ndarray]:
        """Return the references of rows, and the spreads of all differences in steps."""
        entries = self.entries[chosen]
        if not self.synthesis:
            return entries[:, 0], self.spreads.repeat(len(chosen)).numpy()
        expected, spread = Synthesis(self.synthesis).rounded(entries, SMALLEST, self.step)
        return expected, spread.flatten().numpy()

    def _key(self) -> bytes:
        step = torch.tensor(self.step, dtype=torch.float64)
        more = self.synthesis if self.follows is None else (self.follows, *self.synthesis)
        return tensors_key(self.entries, self.shares, self.spreads, step, *more)


def nearest_entries(
    rows: Float[Tensor, "row dim"], entries: Float[Tensor, "entry dim"], n: int = 1
) -> Int[Tensor, "row n"]:
    """Return the indices of the ``n`` entries nearest to each row, nearest first."""
    if not len(rows):
        return torch.zeros(0, n, dtype=torch.int64)
    parts = rows.split(4096)
    return torch.cat([torch.cdist(part, entries).topk(n, 1, largest=False)[1] for part in parts])
