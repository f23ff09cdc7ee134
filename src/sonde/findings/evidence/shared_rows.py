"""The sampled rows that all sites have in common, in one order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import words_of
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.stats import HashSampleState

EXAMPLES = "examples"  # of a row that is named, by planned order; until a report is written


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Sampled rows of all sites, joined by their sampling key.

    Parameters
    ----------
    evidence : Evidence
    index : tuple of Int[Tensor, "row"]
        For each site, where these rows stand in its sample.
    """

    evidence: Evidence
    index: tuple[Int[Tensor, "row"], ...]

    @property
    def group(self) -> Int[Tensor, "row"]:
        """Hash of each row's group."""
        if not self.index:
            return torch.zeros(0, dtype=torch.int64)
        return self.evidence.sites[0].sample.group[self.index[0]]

    @property
    def order(self) -> Int[Tensor, "row"] | None:
        """Index of each row's example in the planned order."""
        return self.column("order")

    def x(self, site: int) -> Float[Tensor, "row dim"]:
        """Return the rows at a site in float64."""
        rows = self.evidence.sites[site].sample.rows.detach().cpu()
        return rows[self.index[site]].double()

    def column(self, name: str) -> Tensor | None:
        """Return a column of these rows, or None if the stream lacks the column."""
        if not self.index:
            return None
        values = self.evidence.column(name, self.evidence.sites[0])
        if values is None:
            return None
        rows = values.detach().cpu()[self.index[0]]
        of_classes = name == "logits" and self.evidence.data.has_labels
        return two_logits(rows) if of_classes else rows


def two_logits(logits: Float[Tensor, "row class"]) -> Float[Tensor, "row class2"]:
    """Return a single logit or probability as two classes; several logits stay unchanged.

    Numbers that all lie in [0, 1] are taken as a sigmoid's probabilities.
    """
    if logits.ndim != 2 or logits.shape[1] != 1:
        return logits
    given = bool(((logits >= 0) & (logits <= 1)).all())
    return torch.cat([1 - logits if given else torch.zeros_like(logits), logits], 1)


@once
def shared_rows(evidence: Evidence) -> SharedRows:
    """Return the sampled rows that all sites have in common."""
    return SharedRows(evidence, joined([s.sample for s in evidence.sites]))


def joined(samples: Sequence[HashSampleState]) -> tuple[Int[Tensor, "row"], ...]:
    """Return, for each sample, the indices of the common rows, in the first sample's order."""
    draws = [s.draw for s in samples]
    if not draws:
        return ()
    if all(torch.equal(d, draws[0]) for d in draws):
        return tuple(torch.arange(len(d)) for d in draws)
    shared = set(draws[0].tolist()).intersection(*(d.tolist() for d in draws[1:]))
    wanted = [d for d in draws[0].tolist() if d in shared]
    places = []
    for draw in draws:
        at = {d: i for i, d in enumerate(draw.tolist())}
        places.append(torch.tensor([at[d] for d in wanted], dtype=torch.int64))
    return tuple(places)


def groups_at(evidence: Evidence, order: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return the group hash of examples by planned order; without ids equal content is a group."""
    return words_of([evidence.data.group_keys[i] for i in order.tolist()])


def one_per_group(group: Int[Tensor, "row"]) -> Int[Tensor, "kept"]:
    """Return the index of the first row of each group, in order."""
    seen: dict[int, int] = {}
    for i, g in enumerate(group.tolist()):
        seen.setdefault(g, i)
    return torch.tensor(list(seen.values()), dtype=torch.int64)


def examples_at(evidence: Evidence, rows: Sequence[int]) -> list[int]:
    """Return the examples of shared rows in planned order; empty if the order is unknown."""
    order = shared_rows(evidence).order
    return [] if order is None else [int(order[i]) for i in rows]


def ids_at(evidence: Evidence, rows: Sequence[int]) -> list[str]:
    """Return the printable ids of shared rows; their positions if the order is unknown."""
    order = shared_rows(evidence).order
    if order is None:
        return [str(i) for i in rows]
    return [str(i) for i in evidence.ids_of(order[torch.tensor(list(rows), dtype=torch.int64)])]
