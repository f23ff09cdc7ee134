"""Choose the items within a limit: a stratified sample if labelled, else the first items.

Files of a folder, and rows of many tables, are sorted by class, so that the first items show some
classes alone. Sources that have no labels before their items are made (data loaders, generators)
give their first items.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
from jaxtyping import Int

from sonde.core.wording import plural
from sonde.data.sources import Row, Source, is_missing

POOL = 100_000
"""Items whose labels are read at most."""
IN_STRATUM = 2
"""Items that each class must get on average; labels with more values are not distinguished."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The items that are read.

    Parameters
    ----------
    rows : Int[np.ndarray, "row"] or None
        Their numbers in the source, sorted; None if all are read.
    of : int or None
        Number of items that they are a sample of; None if they are no sample.
    """

    rows: Int[np.ndarray, "row"] | None = None
    of: int | None = None

    def of_source(self, source: Source) -> Iterator[tuple[int, Row]]:
        """Yield index and row of each item that is read."""
        if self.rows is None:
            yield from enumerate(source.rows())
            return
        wanted = iter(self.rows.tolist())
        number = next(wanted, None)
        for i, row in enumerate(islice(source.rows(), int(self.rows[-1]) + 1)):
            if i == number:
                yield i, row
                number = next(wanted, None)


def kept_items(source: Source, label: str | None, limit: int | None, seed: int) -> Kept:
    """Return the items that a limit keeps.

    The share of each class stays what it is, and each class keeps an item if the limit allows it.
    Within a class, items of the smallest hash of their place are kept, so that an item that is
    added moves at most a few others.

    Parameters
    ----------
    source : Source
    label : str or None
        Column of the label.
    limit : int or None
    seed : int
        Key of the hash.
    """
    if limit is None:
        return Kept()
    labels = None if label is None else source.labels(label)
    if labels is None:
        return Kept(np.arange(limit))
    strata = [_stratum(value) for value in islice(labels, POOL)]
    if len(strata) <= limit:
        return Kept()
    if len(set(strata)) * IN_STRATUM > limit or set(strata) == {None}:
        strata = [None] * len(strata)
    order = sorted(range(len(strata)), key=lambda i: _draw(source.place(i), seed))
    quota = quotas(Counter(strata), limit)
    kept: list[int] = []
    for i in order:
        if quota[strata[i]]:
            quota[strata[i]] -= 1
            kept.append(i)
    return Kept(np.array(sorted(kept)), len(strata))


def sample_note(n: int, of: int | None) -> list[str]:
    """Return a note that items are a sample, or no note if all are read."""
    if of is None:
        return []
    first = "the first " if of == POOL else ""
    return [
        f"{n:,} of {first}{plural(of, 'item')} are read, sampled over the classes (--limit, "
        "--seed)."
    ]


def quotas(counts: Mapping[Hashable, int], limit: int) -> dict[Hashable, int]:
    """Return how many of ``limit`` items each class gets: proportional, but at least 1.

    Examples
    --------
    >>> quotas({"cat": 90, "dog": 9, "owl": 1}, 10)
    {'cat': 8, 'dog': 1, 'owl': 1}
    """
    n = sum(counts.values())
    exact = {k: limit * count / n for k, count in counts.items()}
    counts_of = {k: max(1, int(x)) for k, x in exact.items()}
    while (left := limit - sum(counts_of.values())) != 0:
        step = 1 if left > 0 else -1
        able = [k for k in counts if (counts_of[k] < counts[k] if left > 0 else counts_of[k] > 1)]
        key = max(able, key=lambda k: step * (exact[k] - counts_of[k]))
        counts_of[key] += step
    return counts_of


def _stratum(value: object) -> Hashable:
    if is_missing(value):
        return None
    return value if isinstance(value, str | int) else repr(value)


def _draw(place: str, seed: int) -> bytes:
    return blake2b(f"{seed}|{place}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
