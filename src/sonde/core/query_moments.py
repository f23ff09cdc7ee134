"""Moments and rotation of future queries, for rules of a key-value cache."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.state import State


@dataclass(frozen=True)
class QueryMoments(State):
    """Moments of an attention layer's queries before rotation.

    Rows are texts; moments that were fitted on many texts have one row, which serves all.

    Parameters
    ----------
    n : Int[Tensor, "row"]
        Number of tokens whose queries were counted.
    mean : Float[Tensor, "row query_head width"]
        Mean query of each head.
    scatter : Float[Tensor, "row query_head width width"]
        Sum over the tokens of ``(q - mean)(q - mean)^T``, for each head.
    """

    n: Int[Tensor, "row"]
    mean: Float[Tensor, "row query_head width"]
    scatter: Float[Tensor, "row query_head width width2"]

    @classmethod
    def of(
        cls, queries: Float[Tensor, "row query_head query width"], real: Bool[Tensor, "row query"]
    ) -> "QueryMoments":
        """Return the moments of the queries of real tokens."""
        own = real[:, None, :, None].to(queries.dtype)
        n = real.sum(1)
        mean = (queries * own).sum(2) / n.clamp(min=1)[:, None, None]
        centred = (queries - mean[:, :, None]) * own
        return cls(n, mean, centred.mT @ centred)

    def merge(self, other: "QueryMoments") -> "QueryMoments":
        """Return the merged moments of both sets of queries, row by row."""
        n = self.n + other.n
        share = (other.n / n.clamp(min=1))[:, None, None].to(self.mean)
        apart = other.mean - self.mean
        shift = (apart[..., None] * apart[..., None, :]) * (self.n[:, None, None] * share)[
            ..., None
        ]
        return QueryMoments(
            n, self.mean + apart * share, self.scatter + other.scatter + shift.to(self.scatter)
        )

    def pooled(self) -> "QueryMoments":
        """Return the moments of the queries of all rows together."""
        rows = [QueryMoments(*(x[i : i + 1] for x in (self.n, self.mean, self.scatter)))
                for i in range(len(self.n))]  # fmt: skip
        return reduce(QueryMoments.merge, rows)

    @property
    def covariance(self) -> Float[Tensor, "row query_head width width2"]:
        """Scatter divided by the number of tokens."""
        return self.scatter / self.n.clamp(min=1)[:, None, None, None].to(self.scatter)


class ComingRotation(ABC):
    """Rotations that an attention layer will apply to the next queries of each text."""

    @abstractmethod
    def each(self, n: int) -> Float[Tensor, "row next width width2"]:
        """Return the matrix that rotates a query, for each of the next ``n`` positions."""

    @abstractmethod
    def mean(self, n: int) -> Float[Tensor, "row width width2"]:
        """Return the mean rotation matrix, without computing each matrix."""
