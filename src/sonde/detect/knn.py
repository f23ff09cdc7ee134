"""Distance to the k-th nearest row of a sample of the data.

Makes no assumption on shape, at the price of a bank of rows and one product with it per score.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.finite import largest
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_width
from sonde.stats import HashSample, HashSampleState, largest_products

CHUNK = 2048
BANK_ROWS = 1024
TRANSPOSED = 1 << 14


@final
@dataclass(frozen=True, kw_only=True)
class KNNScorer(Scorer):
    """Distance to the ``k``-th nearest of the unit rows in ``bank``; ``value`` counts them."""

    bank: Float[Tensor, "sample dim"]
    k: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the Euclidean distance between unit rows to the k-th nearest of the bank."""
        check_width("KNN", x, self.bank.shape[1])
        parts = [self._gaps(part).norm(dim=1) for part in x.split(CHUNK)]
        return infinite_where_nonfinite(torch.cat(parts), x)

    def contributions(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the squared gap of each unit to the k-th nearest row; they add to the score's."""
        check_width("KNN", x, self.bank.shape[1])
        return torch.cat([self._gaps(part).square() for part in x.split(CHUNK)])

    def _gaps(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        unit = unit_rows(x).to(self.bank)
        nearest = largest_products(unit, self.bank, self.k)[1][:, -1]
        return unit - self.bank[nearest]


@final
@dataclass(frozen=True)
class KNN(Detector):
    """Distance of each row to its k-th nearest neighbour among the fitted rows, all of unit length.

    Usual rows lie close to many others. Only the direction of a row counts; a row of zeros is at
    distance 1 from everything. From a sample of ``m`` of ``n`` rows distances come out larger,
    while their order stays nearly the same, so calibrate on scores of the same sample.

    Range        [0, 2]; higher = more unusual.
    Cost         one pass; state 4 m dim bytes; O(m dim) per row.
    Assumes      lengths carry nothing; more than ``k`` rows (else the farthest, flag ``few_rows``).
    Differs      from the paper: a hash sample instead of a random one; the distance, not its
                 square.

    Parameters
    ----------
    k : int, default=50
        Which neighbour.
    m : int, default=10000
        Most rows that are kept.

    Examples
    --------
    >>> scorer = KNN(k=1).fit([[1.0, 0.0], [0.0, 2.0]])
    >>> scorer.score(torch.tensor([[3.0, 0.0], [0.0, -1.0]])).round(decimals=4).tolist()
    [0.0, 1.4142]

    References
    ----------
    sun2022knn
    """

    k: int = 50
    m: int = 10_000
    paper: ClassVar[str] = "sun2022knn"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 3, "m": 64}, {"k": 50, "m": 256})

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.m:
            raise InputError(f"KNN: expected 1 <= k <= m, got k={self.k} and m={self.m}.")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the sample."""
        return {"sample": HashSample(self.m)}

    def result(self, sample: HashSampleState) -> KNNScorer:
        """Bring the sampled rows to unit length."""
        if len(sample.rows) == 0:
            raise StateError("KNN: expected at least 1 row to fit on, got none.")
        flags = [] if sample.is_everything else ["sampled"]
        if len(sample.rows) < self.k:
            flags.append("few_rows")
        return KNNScorer(
            value=float(len(sample.rows)),
            n=sample.n,
            range=(0.0, 2.0),
            flags=tuple(flags),
            conventions={
                "value": "rows in the bank",
                "distance": "Euclidean between unit rows",
                "se": "not given for a scorer: calibrate its scores",
            },
            bank=unit_bank(sample.rows),
            k=min(self.k, len(sample.rows)),
        )


def unit_rows(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return rows of length 1 in a float type of at least 32 bits; zeros stay zero.

    Rows so short that their squares vanish (1e-15 in float32) stay shorter than 1.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    length = wide.norm(dim=1, keepdim=True)
    return wide / length.clamp(min=1 / largest(wide.dtype))


def unit_bank(
    x: Float[Tensor, "row dim"], weight: Float[Tensor, "row"] | None = None
) -> Float[Tensor, "row dim"]:
    """Return unit rows, times a weight of each.

    A bank of up to ``TRANSPOSED`` rows is the transpose of a (dim, row) tensor, of which products
    with a few rows read less; in a larger one these would lie too far apart.
    """
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    shape = (x.shape[1], len(x)) if len(x) <= TRANSPOSED else (len(x), x.shape[1])
    held = torch.empty(shape, dtype=wide, device=x.device)
    bank = held.T if len(x) <= TRANSPOSED else held
    for start in range(0, len(x), BANK_ROWS):
        part = slice(start, start + BANK_ROWS)
        unit = unit_rows(x[part])
        bank[part] = unit if weight is None else unit * weight[part, None].to(unit)
    return bank
