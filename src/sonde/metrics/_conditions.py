"""Conditions that select rows: a value, a tail of a number, a cluster of states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CUTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
CLUSTERS = (5, 10, 20)
COMPONENTS, PCA_ROWS, LLOYD_STEPS = 16, 512, 25
MOST_VALUES = 64
Kind = Literal["column", "state", "label", "answer"]


@final
@dataclass(frozen=True)
class Equals:
    """A condition: a column has a given value."""

    source: str
    value: Any
    kind: Kind = "column"

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"{self.source} = {self.value}"

    def holds(self, values: Sequence[Any]) -> Bool[Tensor, "row"]:
        """Return which values of the column equal the condition's value."""
        return torch.tensor([v == self.value for v in values], dtype=torch.bool)


@final
@dataclass(frozen=True)
class Beyond:
    """A condition: a number is at most ``cut``, or at least ``cut`` if ``above``."""

    source: str
    cut: float
    above: bool
    kind: Kind = "column"

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"{self.source} {'>=' if self.above else '<='} {self.cut:.4g}"

    def holds(self, values: Float[Tensor, "row"]) -> Bool[Tensor, "row"]:
        """Return which numbers meet the condition; NaN never does."""
        return values >= self.cut if self.above else values <= self.cut


@final
@dataclass(frozen=True, eq=False)
class Nearest:
    """A state is nearer to one centre than to all others, in principal components of its units."""

    source: str
    index: int
    mean: Float[Tensor, "dim"]
    project: Float[Tensor, "dim component"]
    centres: Float[Tensor, "cluster component"]
    kind: Kind = "state"

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"in cluster {self.index + 1} of {len(self.centres)} at {self.source}"

    def holds(self, values: Float[Tensor, "row dim"]) -> Bool[Tensor, "row"]:
        """Return which states belong to the cluster."""
        return _nearest((values.double() - self.mean) @ self.project, self.centres) == self.index


Condition = Equals | Beyond | Nearest


def candidates(
    columns: Mapping[str, Any],
    states: Mapping[str, Tensor],
    label: Sequence[Any] | None,
    answer: Sequence[Any] | None,
    half: Bool[Tensor, "row"],
    random: torch.Generator,
) -> list[tuple[Condition, Bool[Tensor, "row"]]]:
    """Return single conditions found on half of the rows, and the rows that meet each."""
    conditions: list[tuple[Condition, Tensor]] = []
    for name, values in columns.items():
        if isinstance(values, Tensor) and values.is_floating_point():
            conditions += [(c, c.holds(values)) for c in _tails(name, values, half)]
        else:
            listed = values.tolist() if isinstance(values, Tensor) else list(values)
            conditions += [(c, c.holds(listed)) for c in _values(name, listed, half, "column")]
    if label is not None:
        conditions += [(c, c.holds(label)) for c in _values("label", label, half, "label")]
    if answer is not None:
        conditions += [(c, c.holds(answer)) for c in _values("answer", answer, half, "answer")]
    for site, x in states.items():
        for k in CLUSTERS:
            conditions += [(c, c.holds(x)) for c in _clusters(site, x[half].double(), k, random)]
    return conditions


def _tails(name: str, values: Float[Tensor, "row"], half: Tensor) -> list[Beyond]:
    seen = values[half].double()
    seen = seen[torch.isfinite(seen)]
    if len(seen) == 0 or bool((seen == seen[0]).all()):
        return []
    ends = [(float(seen.quantile(q)), False) for q in CUTS]
    ends += [(float(seen.quantile(1 - q)), True) for q in CUTS]
    return [Beyond(name, cut, above) for cut, above in dict.fromkeys(ends)]


def _values(name: str, values: Sequence[Any], half: Tensor, kind: Kind) -> list[Equals]:
    counts: dict[Any, int] = {}
    for i in torch.nonzero(half).flatten().tolist():
        counts[values[i]] = counts.get(values[i], 0) + 1
    often = sorted(counts, key=lambda v: (-counts[v], str(v)))[:MOST_VALUES]
    return [Equals(name, v, kind) for v in often] if len(often) > 1 else []


def _clusters(
    site: str, x: Float[Tensor, "row dim"], k: int, random: torch.Generator
) -> list[Nearest]:
    """Return clusters by Lloyd's algorithm in principal components of standardised units."""
    mean, scale = x.mean(0), x.std(0)
    weight = torch.where(scale > 0, 1 / scale, 0.0)
    some = ((x - mean) * weight)[:PCA_ROWS]
    _, _, axes = torch.linalg.svd(some, full_matrices=False)
    project = weight[:, None] * axes[:COMPONENTS].T
    z = (x - mean) @ project
    if len(z) <= k:
        return []
    centres = z[torch.randperm(len(z), generator=random)[:1]]
    while len(centres) < k:
        far = torch.cdist(z, centres).min(1).values.square()
        if not bool(far.sum() > 0):
            break
        centres = torch.cat([centres, z[torch.multinomial(far, 1, generator=random)]])
    cluster = _nearest(z, centres)
    for _ in range(LLOYD_STEPS):
        belongs = torch.nn.functional.one_hot(cluster, len(centres)).double()
        sizes = belongs.sum(0)[:, None]
        centres = torch.where(sizes > 0, belongs.T @ z / sizes.clamp(min=1), centres)
        before, cluster = cluster, _nearest(z, centres)
        if torch.equal(before, cluster):
            break
    return [Nearest(site, i, mean, project, centres) for i in range(len(centres))]


def _nearest(
    z: Float[Tensor, "row component"], centres: Float[Tensor, "cluster component"]
) -> Int[Tensor, "row"]:
    return torch.cdist(z, centres).argmin(1)
