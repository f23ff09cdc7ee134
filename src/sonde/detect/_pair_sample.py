"""A sample of row pairs, such as a statement and its negation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import rank_key, splitmix64
from sonde.core.state import State, leaves
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class PairSampleState(State):
    """Rows of the sampled pairs, sorted by pair hash, then by side; ``n`` rows were seen."""

    n: int
    rows: Float[Tensor, "entry dim"]
    pair: Int[Tensor, "entry"]
    side: Int[Tensor, "entry"]
    label: Int[Tensor, "entry"]
    draw: Int[Tensor, "entry"]

    def whole(self) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]]:
        """Return the entries of side 0 and side 1 for every complete pair."""
        both = torch.nonzero(self.pair[1:] == self.pair[:-1]).flatten()
        return both, both + 1


@final
@dataclass(frozen=True)
class PairSample(Statistic[PairSampleState]):
    """The ``m`` pairs with the smallest hashes, however rows are divided or ordered.

    The two rows of a pair may arrive in different batches or shards: a half waits for the other. If
    a side has several rows, the row with the smallest sampling key is kept. Rows of side -1 have no
    pair.

    Parameters
    ----------
    m : int
        Most pairs that are kept.
    """

    m: int

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        pair: Int[Tensor, "row"],
        side: Int[Tensor, "row"],
        label: Int[Tensor, "row"],
        draw: Int[Tensor, "row"],
    ) -> PairSampleState:
        """Return the sample of these rows."""
        wrong = side[(side < -1) | (side > 1)]
        if len(wrong):
            raise InputError(
                "PairSample: expected side 0 or 1, or -1 for a row without a pair, got "
                f"{int(wrong[0])}. Number the two members of each pair 0 and 1."
            )
        kept = torch.nonzero(side.cpu() >= 0).flatten()
        columns = (column.cpu()[kept] for column in (pair, side, label, draw))
        return self._smallest(len(x), x[kept.to(x.device)], *columns)

    def merge(self, a: PairSampleState, b: PairSampleState) -> PairSampleState:
        """Return the smallest pairs of both samples."""
        return self._smallest(a.n + b.n, *joined(a, b))

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ``m`` pairs of float32 rows."""
        return 2 * self.m * (4 * dims[0] + 32)

    def _smallest(
        self, n: int, rows: Tensor, pair: Tensor, side: Tensor, label: Tensor, draw: Tensor
    ) -> PairSampleState:
        keep = smallest_pairs(self.m, pair, side, draw)
        kept = rows[keep.to(rows.device)].clone()
        return PairSampleState(n, kept, pair[keep], side[keep], label[keep], draw[keep])


def joined(a: State, b: State) -> list[Tensor]:
    """Return the tensors of two states, concatenated field by field."""
    return [torch.cat([x, y.to(x.device)]) for x, y in zip(leaves(a), leaves(b), strict=True)]


def smallest_pairs(
    m: int, pair: Int[Tensor, "row"], side: Int[Tensor, "row"], draw: Int[Tensor, "row"]
) -> Int[Tensor, "entry"]:
    """Return the rows of the ``m`` pairs with the smallest hashes, sorted by hash, then side.

    If a side has several rows, the row with the smallest sampling key is returned.
    """
    hashed = torch.from_numpy(splitmix64(pair.numpy().view("uint64")).view("int64"))
    order = torch.argsort(rank_key(draw), stable=True)
    for key in (side, rank_key(hashed)):
        order = order[torch.argsort(key[order], stable=True)]
    p, s = pair[order], side[order]
    new_side, new_pair = (torch.ones(len(order), dtype=torch.bool) for _ in range(2))
    new_pair[1:] = p[1:] != p[:-1]
    new_side[1:] = new_pair[1:] | (s[1:] != s[:-1])
    return order[new_side & (new_pair.long().cumsum(0) <= m)]
