"""Samples against held-out rows: distances to training rows, shared shingles, an exact test."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import hypergeom  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde_studies.parts.words import WORD

CELLS, SHUFFLES, SHINGLE = 4_000_000, 1999, 3


def nearest(
    x: Float[Tensor, "row dim"], others: Float[Tensor, "other dim"]
) -> tuple[Float[Tensor, "row"], Int[Tensor, "row"]]:
    """Return the distance to the nearest of other rows, and its number, in blocks of rows.

    Distances are differences of the rows themselves: equal rows have distance 0.
    """
    best, which = torch.full((len(x),), float("inf")).to(x), torch.zeros(len(x), dtype=torch.long)
    size = max(1, CELLS // max(len(x), 1))
    for start in range(0, len(others), size):
        near, number = torch.cdist(x, others[start : start + size]).min(1)
        which = torch.where(near < best, number + start, which)
        best = torch.minimum(near, best)
    return (x - others[which]).norm(dim=1), which


def lowest(values: Any, item: Any) -> tuple[Any, Any, Any]:
    """Return the items, the lowest value of each item's rows, and the number of that row."""
    order = np.lexsort((values, item))
    names, first = np.unique(np.asarray(item)[order], return_index=True)
    return names, np.asarray(values)[order][first], order[first]


def is_lower(values: Any, others: Any, seed: int) -> float:
    """Return the p of values reaching lower than others that were drawn alike.

    Among the lowest k of all values, for k of 1, 2, 3, 4, 6 and so on, a hypergeometric number is
    of the first sample if both were drawn alike. The statistic is the least p over k; shuffled
    samples give its law, so that trying several k costs nothing.
    """
    pooled = np.r_[values, others]
    order = np.argsort(pooled, kind="stable")
    n, total = len(values), len(pooled)
    sizes = np.unique(np.geomspace(1, total - 1, 24).astype(int))
    ends = np.unique(np.searchsorted(pooled[order], pooled[order][sizes - 1], side="right"))
    ends = ends[ends < total]
    if not len(ends):
        return 1.0
    draw, mine = np.random.default_rng(seed), np.arange(total) < n
    rows = np.stack([mine[order], *(draw.permutation(mine) for _ in range(SHUFFLES))])
    counts = rows.cumsum(1)[:, ends - 1]
    tails = [
        hypergeom.sf(np.arange(-1, n + 1), total, n, end) for end in ends
    ]  # by the number of the first sample among the lowest
    least = np.stack([tail[c] for tail, c in zip(tails, counts.T, strict=True)]).min(0)
    return float((least <= least[0] * (1 + 1e-9)).mean())


def reach_below(values: Any, others: Any, fraction: float) -> float:
    """Return the p of the number of values below the lowest others, if both were drawn alike.

    Values are counted below the lowest of the others, and below that of rank ``fraction`` of them;
    the number below a rank is negative hypergeometric. Bonferroni joins the two.
    """
    low = np.sort(others)
    ranks = {1, max(1, int(fraction * (len(low) + 1)))}
    found = []
    for rank in ranks:
        n_below = int((values < low[rank - 1]).sum())
        seen = n_below + rank - 1  # among so many lowest there are fewer than ``rank`` others
        found.append(hypergeom.cdf(rank - 1, len(values) + len(low), len(low), seen))
    return min(1.0, len(ranks) * float(min(found)))


def shingles(text: str, size: int = SHINGLE) -> set[tuple[str, ...]]:
    """Return the runs of `size` words in a text, lower case; a shorter text is one run."""
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def shared(texts: Sequence[str], training: Iterable[str]) -> tuple[Any, Any]:
    """Return the largest fraction of each text's shingles in one training text, and its number.

    The shingles of ``texts`` are held in memory, training texts pass by one after another.
    """
    users: dict[tuple[str, ...], list[int]] = {}
    sizes = np.zeros(len(texts))
    for number, text in enumerate(texts):
        found = shingles(text)
        sizes[number] = len(found)
        for shingle in found:
            users.setdefault(shingle, []).append(number)
    most, which = np.zeros(len(texts)), np.zeros(len(texts), dtype=int)
    for number, text in enumerate(training):
        hits: dict[int, int] = {}
        for shingle in shingles(text):
            for user in users.get(shingle, ()):
                hits[user] = hits.get(user, 0) + 1
        for user, count in hits.items():
            if count / sizes[user] > most[user]:
                most[user], which[user] = count / sizes[user], number
    return most, which
