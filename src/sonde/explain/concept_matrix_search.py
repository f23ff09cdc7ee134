"""Classification by a matrix of concept scores: no training, and every decision is readable.

For rows that are scores of named concepts; take a linear probe where rows are plain states.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.stats import ClassMoments, ClassMomentsState

Measure = Literal["correlation", "cosine"]
DECIDES = 0.95
ROUNDING = 1e-9


@final
@dataclass(frozen=True, kw_only=True)
class ConceptMatrix(Result):
    """``value`` is the mean score of each concept in each class; ``labels`` are the classes.

    ``mean`` and ``scale`` over the classes standardise each concept.
    """

    value: Float[Tensor, "class concept"]  # pyright: ignore[reportGeneralTypeIssues]
    labels: Int[Tensor, "class"]
    mean: Float[Tensor, "concept"]
    scale: Float[Tensor, "concept"]
    measure: Measure

    def parts(self, rows: Float[Tensor, "row concept"]) -> Float[Tensor, "row class concept"]:
        """Return the contribution of each concept to the similarity of each row with each class."""
        if rows.shape[1] != self.value.shape[1]:
            raise ShapeError(
                f"ConceptMatrix.parts: expected scores of {self.value.shape[1]} concepts, got "
                f"{rows.shape[1]}."
            )
        own = self._directions((rows.to(self.mean) - self.mean) / self.scale)
        classes = self._directions((self.value - self.mean) / self.scale)
        return own[:, None] * classes

    def similarity(self, rows: Float[Tensor, "row concept"]) -> Float[Tensor, "row class"]:
        """Return the correlation, or the cosine, of each row with each row of the class matrix."""
        return self.parts(rows).sum(2)

    def classify(self, rows: Float[Tensor, "row concept"]) -> Int[Tensor, "row"]:
        """Return the label of the most similar class."""
        return self.labels[self.similarity(rows).argmax(1)]

    def concepts_per_decision(self, rows: Float[Tensor, "row concept"]) -> Float[Tensor, "row"]:
        """Return the fewest concepts that make up 95 % of the evidence about the chosen class."""
        parts = self.parts(rows)
        chosen = parts[torch.arange(len(parts)), parts.sum(2).argmax(1)].abs()
        mass = chosen.sort(dim=1, descending=True).values.cumsum(1)
        enough = mass >= DECIDES * mass[:, -1:]
        return enough.int().argmax(1).double() + 1.0

    def _directions(self, x: Float[Tensor, "row concept"]) -> Float[Tensor, "row concept"]:
        if self.measure == "correlation":
            x = x - x.mean(1, keepdim=True)
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)


@final
@dataclass(frozen=True)
class ConceptMatrixSearch(Instrument):
    """Assigns each row the class whose mean concept scores are most similar.

    Concepts are standardised over the classes, so that a concept that all classes share says
    nothing; then a row goes to the class whose row of the matrix it correlates with most.

    Range        (-inf, inf), the mean of each concept over a class; similarities of the search lie
                 in [-1, 1]; higher = more like the class.
    Cost         one pass; state ``8 classes concepts`` bytes; a product for each row.
    Assumes      rows are scores of concepts; at least two classes.
    Differs      from the paper: the matrix comes from labelled rows. Give the similarities of the
                 names of classes to concepts to ``of`` for the paper's, which needs no labels.

    Parameters
    ----------
    measure : {"correlation", "cosine"}, default="correlation"
        How a row's scores are compared with a class's row of the matrix.

    Examples
    --------
    >>> scores = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.3]])
    >>> found = ConceptMatrixSearch().fit(scores, label=torch.tensor([4, 7]))
    >>> found.classify(torch.tensor([[0.1, 0.8, 0.2]])).tolist()
    [7]

    References
    ----------
    semenov2024sparsecbm
    """

    measure: Measure = "correlation"
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "semenov2024sparsecbm"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"measure": "cosine"})

    def __post_init__(self) -> None:
        check_ranges(self, measure=("correlation", "cosine"))

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the mean of every class."""
        return {"classes": ClassMoments("trace")}

    def result(self, classes: ClassMomentsState) -> ConceptMatrix:
        """Return the concept matrix of the classes.

        Raises
        ------
        InputError
            If there are fewer than two classes.
        """
        return self.of(classes.mean, classes.labels, n=int(classes.weight.sum()))

    def of(
        self,
        matrix: Float[Tensor, "class concept"],
        labels: Int[Tensor, "class"] | None = None,
        *,
        n: int = 0,
    ) -> ConceptMatrix:
        """Return the search over a known matrix, for example of similarities between names.

        Parameters
        ----------
        matrix : Float[Tensor, "class concept"]
        labels : Int[Tensor, "class"], optional
            0, 1, .. by default.
        n : int, default=0
            Rows that the matrix comes from.
        """
        if len(matrix) < 2:
            raise InputError(
                f"ConceptMatrixSearch: expected rows of at least two classes, got {len(matrix)}. "
                "Give the rows labels."
            )
        matrix = matrix.double()
        scale = matrix.std(0, correction=0)
        differs = scale > ROUNDING * matrix.abs().amax()
        is_dead = not bool(differs.any())
        return ConceptMatrix(
            value=matrix,
            n=n,
            flags=("dead",) if is_dead else (),
            conventions={"measure": self.measure, "se": "none"},
            labels=torch.arange(len(matrix)) if labels is None else labels,
            mean=matrix.mean(0),
            scale=torch.where(differs, scale, torch.inf),
            measure=self.measure,
        )
