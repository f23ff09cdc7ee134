"""Mahalanobis distance of each patch from normal images' patches at its position.

For images that are aligned: the same part of the object at the same place. For other images use a
bank of patches of all places (``PatchCore``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.stats.position_moments import (
    CHUNK,
    PositionMoments,
    PositionMomentsState,
    by_position,
)
from sonde.stats.shrinkage import Shrinkage, check_shrinkage

LEAST_IMAGES = 2


@final
@dataclass(frozen=True, kw_only=True)
class PaDiMScorer(Scorer):
    """Distance of each patch in its position's metric; ``value`` counts the positions."""

    mean: Float[Tensor, "position coordinate"]
    root: Float[Tensor, "position coordinate coordinate"]
    shrinkage: Float[Tensor, "position"]
    coordinates: Int[Tensor, "coordinate"]
    dim: int

    @property
    def n_places(self) -> int:
        """Number of fitted positions."""
        return len(self.mean)

    def score(
        self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """Return the distance of each patch to the mean at its position."""
        out = x.new_empty(len(x), dtype=self.mean.dtype)
        for _, index, white in self._whitened(x, position):
            out[index.flatten()] = white.norm(dim=2).flatten()
        return infinite_where_nonfinite(out, x)

    def contributions(
        self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
    ) -> Float[Tensor, "row dim"]:
        """Return the drop of the squared distance without each unit; 0 for unused units."""
        out = x.new_zeros(len(x), self.dim, dtype=self.mean.dtype)
        for places, index, white in self._whitened(x, position):
            root = self.root[places]
            scale = root.square().sum(2)[:, None]
            drop = (white @ root.mT).square() / scale.clamp(min=torch.finfo(out.dtype).tiny)
            drop = torch.where(scale > 0, drop, torch.zeros_like(drop)).flatten(0, 1)
            out[index.flatten()[:, None], self.coordinates.to(x.device)] = drop
        return out

    def _whitened(
        self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield some positions, their row indices, and their centred, whitened rows."""
        check_fitted_width("PaDiM", x, self.dim)
        if len(x) == 0:
            return
        if int(position.min()) < 0 or int(position.max()) >= len(self.mean):
            raise InputError(
                f"PaDiM.score: expected positions in [0, {len(self.mean)}) (as fitted), got "
                f"{int(position.min())} to {int(position.max())}. Give images of the fitted size."
            )
        rows = x[:, self.coordinates.to(x.device)].to(self.mean.dtype)
        for places, index in by_position(position.cpu()):
            index = index.to(x.device)
            yield places, index, (rows[index] - self.mean[places][:, None]) @ self.root[places]


@final
@dataclass(frozen=True)
class PaDiM(Detector):
    """Mahalanobis distance of each patch to the mean patch at its position.

    Every place of an aligned image has a Gaussian of its own over a few coordinates drawn at
    random: ``sqrt((x - m_p)^T S_p^-1 (x - m_p))``. With all coordinates and no shrinkage it is
    invariant under an invertible affine map of the patches.

    Range        [0, inf), dimensionless; higher = more unusual. An image's score is its largest.
    Cost         one pass; state 4 positions coordinates^2 bytes; result O(positions
                 coordinates^3); O(coordinates^2) per patch.
    Assumes      reducer ``patches``; images of one size, aligned; at least 2 at each position. If
                 all images are equal at a position, the position takes the mean variance over all
                 positions (flag ``dead``).
    Differs      from the paper: one site at a time; shrinkage in place of a fixed ridge; smooth the
                 map with ``sonde.stats.score_map``.

    Parameters
    ----------
    coordinates : int, default=100
        How many coordinates are used.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity mixed into each covariance.
    seed : int, default=0
        Which coordinates.
    max_positions : int, default=4096
        Positions from here on are refused.

    Examples
    --------
    >>> x = [[0.0], [4.0], [1.0], [3.0]]
    >>> scorer = PaDiM(shrinkage=0.0).fit(x, position=[0, 1, 0, 1], ids=["a", "a", "b", "b"])
    >>> scorer.score(torch.tensor([[2.5], [2.5]]), torch.tensor([0, 1])).tolist()
    [4.0, 2.0]

    References
    ----------
    defard2021padim, chen2010oas
    """

    coordinates: int = 100
    shrinkage: Shrinkage = "oas"
    seed: int = 0
    max_positions: int = 4096
    word: ClassVar[str] = "padim"
    paper: ClassVar[str] = "defard2021padim"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"coordinates": 3, "shrinkage": 0.1})

    def __post_init__(self) -> None:
        check_shrinkage("PaDiM", self.shrinkage)
        _ = self.reads()  # refuses what the statistic refuses

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per patch."""
        return {"reducer": "patches"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the moments at each position."""
        return {"places": PositionMoments("full", self.coordinates, self.seed, self.max_positions)}

    def result(self, places: PositionMomentsState) -> PaDiMScorer:
        """Invert the covariance of each position."""
        fewest = int(places.counts.min())
        if fewest < LEAST_IMAGES:
            raise StateError(
                f"PaDiM: expected at least {LEAST_IMAGES} images at each of {len(places.counts)} "
                f"positions, got {fewest} at position {int(places.counts.argmin())}. Give more "
                "images, all of one size."
            )
        root, weight, dead = _roots(places, self.shrinkage)
        flags = ["dead"] if dead else []
        flags += ["few_rows"] if fewest <= len(places.coordinates) else []
        return PaDiMScorer(
            value=float(len(places.counts)),
            n=places.n,
            range=(0.0, float("inf")),
            flags=tuple(flags),
            conventions={
                "value": "positions",
                "divisor": "n",
                "se": "not given for a scorer: calibrate its scores",
            },
            mean=places.mean,
            root=root,
            shrinkage=weight,
            coordinates=places.coordinates,
            dim=places.dim,
        )


def _roots(
    places: PositionMomentsState, shrinkage: Shrinkage
) -> tuple[Float[Tensor, "position d d"], Float[Tensor, "position"], bool]:
    """Return inverse roots, identity weights, and a flag for constant positions.

    Directions without variance become columns of zeros.
    """
    d, n_places = len(places.coordinates), len(places.counts)
    tiny = d * torch.finfo(torch.float64).eps
    variance = places.diagonal / places.counts[:, None]
    scale = variance.mean(1)
    dead = scale <= tiny * scale.max()
    scale = torch.where(dead, scale.mean(), scale)
    roots, weights = [], []
    for start in range(0, n_places, CHUNK):
        part = slice(start, start + CHUNK)
        covariance = places.covariance(part)
        weight = _weights(covariance, places.counts[part], shrinkage)
        weight = torch.where(dead[part], torch.ones_like(weight), weight)
        covariance = covariance * (1 - weight)[:, None, None]
        covariance.diagonal(dim1=1, dim2=2).add_((weight * scale[part])[:, None])
        values, vectors = torch.linalg.eigh(covariance)
        keep = values > tiny * values[:, -1:].clamp(min=0.0)
        inverse = torch.where(keep, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
        roots.append(vectors * inverse[:, None])
        weights.append(weight)
    return torch.cat(roots), torch.cat(weights), bool(dead.any())


def _weights(
    covariance: Float[Tensor, "position d d"], n: Int[Tensor, "position"], shrinkage: Shrinkage
) -> Float[Tensor, "position"]:
    """Return the identity's weight at each position, by ``sonde.stats.oas_weight``."""
    if shrinkage != "oas":
        return torch.full((len(n),), float(shrinkage), dtype=torch.float64)
    d = covariance.shape[1]
    square = covariance.diagonal(dim1=1, dim2=2).mean(1).square()
    alpha = covariance.square().mean((1, 2))
    rest = (n + 1.0) * (alpha - square / d)
    full = torch.ones_like(square)
    return torch.where(rest > 0, ((alpha + square) / rest.clamp(min=1e-300)).clamp(max=1.0), full)
