"""Labels by lot, which nothing can tell of rows that were not seen, and parts by lot."""

import hashlib
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOTS = 200


def labels_by_lot(rows: Float[Tensor, "row *axes"], n: int, seed: int) -> Int[Tensor, "row"]:
    """Return a random label for each row, the same for rows that are equal to four decimals.

    On other rows every classifier is right in one of ``n`` on average. It is right more often where
    rows that judge, or copies of them, are among those that were learned.

    Parameters
    ----------
    rows : Float[Tensor, "row *axes"]
    n : int
        Labels to draw from.
    seed : int
    """
    key = seed.to_bytes(8, "little")
    if rows.is_floating_point():
        rows = rows.round(decimals=4) + 0.0  # -0.0 has other bytes than 0.0
    found = (
        hashlib.blake2b(row.tobytes(), digest_size=8, key=key) for row in rows.contiguous().numpy()
    )
    return torch.tensor([int.from_bytes(one.digest(), "little") % n for one in found])


def share_by_lot(added: Float[Tensor, "block"], n: int, seed: int) -> float:
    """Return the mean share that random sets of blocks have of all contributions.

    Parameters
    ----------
    added : Float[Tensor, "block"]
    n : int
        Blocks of a set.
    seed : int
    """
    source = torch.Generator().manual_seed(seed)
    lots = (torch.randperm(len(added), generator=source)[:n] for _ in range(LOTS))
    return fmean(float(added[lot].sum() / added.sum()) for lot in lots)
