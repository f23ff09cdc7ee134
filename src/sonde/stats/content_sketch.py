"""Find repeated inputs: exact counts for the contents of smallest hash."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.hashing import rank_key
from sonde.core.ranges import check_ranges
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.sequences import by_example

_NONE = torch.iinfo(torch.int64).max
KEPT = 3


@dataclass(frozen=True)
class ContentSketchState(State):
    """The contents of smallest hash, ascending, with exact numbers of their examples.

    ``examples`` holds the planned indices of the first three examples (``2**63 - 1`` fills missing
    places). ``low_label`` and ``high_label`` are the smallest and largest label of a content: if
    they differ, its examples have different labels. ``n`` examples were seen.
    """

    n: int
    keys: Int[Tensor, "content 2"]
    count: Int[Tensor, "content"]
    examples: Int[Tensor, "content 3"]
    low_label: Int[Tensor, "content"]
    high_label: Int[Tensor, "content"]

    @property
    def duplicate_share(self) -> float:
        """Estimated fraction of examples that repeat an earlier one; exact if none was dropped."""
        total = int(self.count.sum())
        return 1 - len(self.count) / total if total else float("nan")


@final
@dataclass(frozen=True)
class ContentSketch(Statistic[ContentSketchState]):
    """The ``m`` smallest content hashes of examples, with counts, first examples and labels.

    Equal contents have equal ids, so sampling cannot miss the copies of a kept content. An example
    with several rows counts once; all its rows must come in one ``observe`` call.

    Parameters
    ----------
    m : int, default=4096
        Most contents that are kept.
    """

    m: int = 4096

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 1")

    def observe(
        self, ids: Int[Tensor, "row 2"], order: Int[Tensor, "row"], label: Int[Tensor, "row"]
    ) -> ContentSketchState:
        """Return the sketch of these rows' examples."""
        first = by_example(order).first
        examples = torch.full((len(first), KEPT), _NONE)
        examples[:, 0] = order[first]
        one = torch.ones(len(first), dtype=torch.int64)
        label = label[first].long()
        return self._smallest(len(first), ids[first], one, examples, label, label)

    def merge(self, a: ContentSketchState, b: ContentSketchState) -> ContentSketchState:
        """Return the joined sketch."""
        columns = [
            torch.cat([getattr(a, name), getattr(b, name)])
            for name in ("keys", "count", "examples", "low_label", "high_label")
        ]
        return self._smallest(a.n + b.n, *columns)

    def _smallest(
        self, n: int, keys: Tensor, count: Tensor, examples: Tensor, low: Tensor, high: Tensor
    ) -> ContentSketchState:
        distinct, index = torch.unique(rank_key(keys), dim=0, return_inverse=True)
        size = len(distinct)
        total = count.new_zeros(size).index_add_(0, index, count)
        lowest = low.new_zeros(size).scatter_reduce(0, index, low, "amin", include_self=False)
        highest = high.new_zeros(size).scatter_reduce(0, index, high, "amax", include_self=False)
        firsts = _first_of_each(examples, index, size)
        m = self.m
        return ContentSketchState(
            n, rank_key(distinct[:m]), total[:m], firsts[:m], lowest[:m], highest[:m]
        )


def _first_of_each(
    examples: Int[Tensor, "row kept"], index: Int[Tensor, "row"], size: int
) -> Int[Tensor, "content 3"]:
    """Return the three smallest planned indices of each content."""
    flat, owner = examples.flatten(), index.repeat_interleave(examples.shape[1])
    ranked = by_example(owner, flat)
    kept = ranked.rank < KEPT
    out = torch.full((size, KEPT), _NONE)
    out[ranked.member[kept], ranked.rank[kept]] = flat[ranked.rows[kept]]
    return out
