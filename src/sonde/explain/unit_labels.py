"""Concept of a unit: the concept whose rows give the unit high values.

For patches, tokens or dictionary features whose concepts are known row by row.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.stats import ScaledHistogram, ScaledHistogramState

FEWEST: Final = 10


@final
@dataclass(frozen=True, kw_only=True)
class UnitLabelsResult(Result):
    """``value`` is the overlap with the best ``concept``; ``label`` is that concept, or -1.

    ``null`` is the overlap of a unit that is high as often and independent of that concept.
    ``threshold`` and ``share`` say above which value a unit counts as high and how often it is;
    ``overlap``, ``average_precision`` and ``best_f1`` are those of every concept; ``counts`` the
    histograms that all figures come from.
    """

    label: Int[Tensor, "dim"]
    concept: Int[Tensor, "dim"]
    threshold: Float[Tensor, "dim"]
    share: Float[Tensor, "dim"]
    overlap: Float[Tensor, "concept dim"]
    average_precision: Float[Tensor, "concept dim"]
    best_f1: Float[Tensor, "concept dim"]
    counts: ScaledHistogramState

    @property
    def labelled(self) -> float:
        """Fraction of the units that have a label."""
        return float((self.label >= 0).double().mean())


@final
@dataclass(frozen=True)
class UnitLabels(Instrument):
    """Overlap between the rows with high values of a unit and the rows of its best concept.

    ``IoU = |high and concept| / |high or concept|``; a unit is high above the smallest edge of its
    histogram that at most ``quantile`` of all rows exceed, or above the edge that serves the
    concept best. The histogram of all rows and those of
    each concept give the overlap at any threshold in one pass.

    Range        [0, 1]; higher = the unit and the concept pick the same rows.
    Cost         one pass; state ``8 dim bins (concepts + 1)`` bytes.
    Assumes      concepts known for every row; where maps are read, at the resolution of the map.
    Differs      thresholds lie on the edges of a histogram, at least ``bins / 4`` of them above 0,
                 in place of exact quantiles.

    Parameters
    ----------
    quantile : float or None, default=0.005
        Largest share of rows on which a unit counts as high; None takes the threshold of the
        largest overlap, as suits classes, which are far larger than parts of pictures. Chance is
        then the concept's share of all rows: the overlap of a unit that is high everywhere.
    least : float, default=0.04
        Least overlap for a concept to be a unit's label; a concept of fewer than ten rows never is.
        If ``quantile`` is None, the overlap counts from chance (0) to 1.
    bins : int, default=128
        Bins of each unit, a power of two.
    concepts : str, default="label"
        Column of concepts: ``"label"``, one concept for each row; any other column of the data
        holds bits, concept ``k`` where bit ``k`` is set.

    Examples
    --------
    >>> is_edge = torch.arange(1000) < 30
    >>> unit = is_edge * 2.0 + torch.linspace(0, 1, 1000)
    >>> found = UnitLabels(quantile=0.05).fit(unit[:, None], label=is_edge.long())
    >>> found.label.tolist(), found.value
    ([1], 1.0)

    References
    ----------
    bau2017dissection
    """

    quantile: float | None = 0.005
    least: float = 0.04
    bins: int = 128
    concepts: str = "label"
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "bau2017dissection"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"quantile": 0.2, "bins": 16},
        {"quantile": None, "least": 0.5},
    )

    def __post_init__(self) -> None:
        check_ranges(self, quantile="(0, 1)", least="[0, 1]")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the histograms of each unit, of all rows and of each concept."""
        return {"counts": ScaledHistogram(self.bins, self.concepts)}

    def result(self, counts: ScaledHistogramState) -> UnitLabelsResult:
        """Return the overlap of each unit with each concept.

        Raises
        ------
        InputError
            If no row belongs to a concept.
        """
        if not bool(counts.concept_n.any()):
            raise InputError(
                f"UnitLabels: expected rows of concepts, got none in the column {self.concepts!r}. "
                "Give the rows labels, or name a column of bits."
            )
        above, inside = counts.above.double(), counts.concept_above.double()
        size = counts.concept_n.double()[:, None]
        if self.quantile is None:
            overlaps = inside / (above + size[..., None] - inside).clamp(min=1.0)
            overlap, edges = overlaps.max(2)
            share = size / counts.n
            best = ((overlap - share) / (1 - share).clamp(min=1e-300)).argmax(0)
            edge, null = edges.gather(0, best[None]).T, share[best, 0]
            least = null + self.least * (1 - null)
        else:
            edge, least = self._edge(above, counts.n, self.quantile), self.least
            both = inside.gather(2, edge.expand(len(size), *edge.shape))[..., 0]
            high = above.gather(1, edge)[:, 0]
            overlap = both / (high + size - both).clamp(min=1.0)
            best = overlap.argmax(0)
            chance = high * size[best, 0] / counts.n
            null = chance / (high + size[best, 0] - chance).clamp(min=1e-300)
        value = overlap.gather(0, best[None])[0]
        is_dead = (counts.counts > 0).sum(1) == 1
        is_named = (value >= least) & ~is_dead & (counts.concept_n[best] >= FEWEST)
        precision = inside / above.clamp(min=1.0)
        recall = inside / size[..., None].clamp(min=1.0)
        steps = recall - torch.cat([recall[..., 1:], torch.zeros_like(recall[..., :1])], -1)
        f1 = 2 * inside / (above + size[..., None]).clamp(min=1.0)
        return UnitLabelsResult(
            value=value,
            null=null,
            n=counts.n,
            range=(0.0, 1.0),
            direction="higher",
            flags=self._flags(bool(is_dead.any()), counts.concept_n),
            conventions={"threshold": self._said(), "se": "none"},
            label=torch.where(is_named, best, -1),
            concept=best,
            threshold=counts.edges.gather(1, edge)[:, 0],
            share=above.gather(1, edge)[:, 0] / counts.n,
            overlap=overlap,
            average_precision=(precision * steps).sum(-1),
            best_f1=f1.amax(-1),
            counts=counts,
        )

    def _flags(self, is_dead: bool, rows: Int[Tensor, "concept"]) -> tuple[str, ...]:
        is_few = bool(((rows > 0) & (rows < FEWEST)).any())
        return (("dead",) if is_dead else ()) + (("few_rows",) if is_few else ())

    def _said(self) -> str:
        if self.quantile is None:
            return "of the largest overlap"
        return f"at most {self.quantile:g} of rows above"

    def _edge(
        self, above: Float[Tensor, "dim bin"], n: int, quantile: float
    ) -> Int[Tensor, "dim 1"]:
        """Return the first bin edge that few rows exceed, or the edge below if none exceeds it."""
        is_rare = above <= quantile * n
        last = torch.full_like(above[:, :1], above.shape[1] - 1).long()
        edge = torch.where(
            is_rare.any(1, keepdim=True), is_rare.int().argmax(1, keepdim=True), last
        )
        empty = above.gather(1, edge) == 0
        return torch.where(empty, (edge - 1).clamp(min=0), edge)
