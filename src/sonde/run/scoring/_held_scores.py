"""Score held-out rows in memory that does not grow with the number of rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.core.stream import Stream
from sonde.engine.array_stream import ArrayStream
from sonde.engine.passes import merge_pair
from sonde.engine.progress import Bar
from sonde.run.instruments.entries import Key
from sonde.run.scoring._scored import Found, ScoredBatch, least
from sonde.stats import HeldScoresState, Kept
from sonde.stats.calibrated import Lengths


def held_scores(
    batches: Iterable[ScoredBatch],
    names: Iterable[Key],
    kept: Kept,
    groups: "Groups | None",
    bar: Bar,
) -> tuple[dict[Key, HeldScoresState], dict[Key, Lengths]]:
    """Return every detector's scores of held-out examples, and the lengths of the examples.

    A detector has one score for each group.

    If a group holds several usual examples, the example chosen by a hash of its place stands for
    all. Without groups every example stands for itself.
    """
    states: dict[Key, HeldScoresState | None] = dict.fromkeys(names)
    waiting: dict[Key, Found] = {}
    lengths: dict[Key, Lengths] = {}

    def keep(name: Key, found: Found) -> None:
        if len(found.score):
            columns = found.score[:, None], found.label, found.draw
            state = kept.statistic.observe(*columns)
            states[name] = merge_pair(kept.statistic, states[name], state)
            more = Lengths.of(found.n_rows)
            lengths[name] = lengths[name].merge(more) if name in lengths else more

    for batch in batches:
        if groups is not None:
            groups.see(batch.order)
        for name, scored in batch.found.items():
            if groups is None:
                keep(name, scored)
                continue
            over, waiting[name] = groups.complete(scored.after(waiting.get(name)))
            keep(name, over)
        bar.advance(len(batch.order))
    for name, scored in waiting.items():
        keep(name, scored)
    empty = [f"{word} at {site}" for (word, site), state in states.items() if state is None]
    if empty:
        raise InputError(f"calibrate: expected in-distribution rows, got none for {empty[0]}.")
    return {name: state for name, state in states.items() if state is not None}, lengths


@dataclass(frozen=True)
class Groups:
    """The groups of a stream; ``missing`` counts each group's examples that have not been read."""

    rank: Int[Tensor, "example"]
    member: Int[Tensor, "example"]
    missing: Int[Tensor, "group"]

    @classmethod
    def of(cls, stream: Stream) -> "Groups | None":
        """Return the groups, or None if each example is a group of its own."""
        ids = isinstance(stream, ArrayStream) and stream.who.given is not None
        if not stream.grouped and not ids:
            return None
        numbers: dict[bytes, int] = {}
        listed = [numbers.setdefault(key, len(numbers)) for key in stream.group_keys]
        places = np.arange(len(listed), dtype=np.uint64)
        drawn = splitmix64(places ^ np.uint64(stream.seed + 2**32))
        rank = np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
        member = torch.tensor(listed, dtype=torch.int64)
        return cls(torch.from_numpy(rank), member, torch.bincount(member))

    def see(self, order: Int[Tensor, "example"]) -> None:
        """Count these examples as read."""
        members = self.member[order]
        self.missing.index_add_(0, members, torch.full_like(members, -1))

    def complete(self, found: Found) -> tuple[Found, Found]:
        """Return an example for each group: first the fully read groups, then the others."""
        rank, member = self.rank[found.entry], self.member[found.entry]
        first = found.at(least(rank, rank, member))
        over = self.missing[self.member[first.entry]] == 0
        return first.at(over), first.at(~over)
