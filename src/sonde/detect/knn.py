"""Distance to the k-th nearest row of a sample of the data.

Makes no assumption on shape, at the price of a bank of rows and a product with the bank per score.
The product is of centred rows, and in float64 if its rounding could still be seen.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.finite import largest
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.detect._neighbours import neighbour_flags
from sonde.stats import HashSample, HashSampleState, largest_products, unit_rows

CHUNK = 2048
BANK_ROWS = 1024
TRANSPOSED = 1 << 14
SURE = 1e-5  # by how much of it a distance may be off


@final
@dataclass(frozen=True, kw_only=True)
class KNNScorer(Scorer):
    """Distance to the ``k``-th nearest of the fitted ``rows``, all of unit length.

    ``bank`` holds the unit rows minus ``origin``, and minus half of the squared length of these
    differences; ``value`` counts the rows.
    """

    rows: Float[Tensor, "sample dim"]
    origin: Float[Tensor, "dim"]
    bank: Float[Tensor, "sample dim_and_square"]
    reach: float
    k: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the Euclidean distance of unit rows to the k-th nearest row of the bank."""
        check_fitted_width("KNN", x, len(self.origin))
        parts = [self._gaps(part).norm(dim=1).to(self.bank) for part in x.split(CHUNK)]
        return infinite_where_nonfinite(torch.cat(parts), x)

    def contributions(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return each unit's squared difference to the k-th nearest row."""
        check_fitted_width("KNN", x, len(self.origin))
        return torch.cat([self._gaps(part).square().to(self.bank) for part in x.split(CHUNK)])

    def _gaps(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return each unit row's difference to the k-th nearest row, in float64.

        A rounding error ``e`` of a product moves the k-th squared distance by ``e`` at most. If the
        error could show, the neighbour is chosen again by products in float64.
        """
        unit = to_unit_length(x.to(self.bank.device).double())
        query = unit - self.origin
        gaps = unit - self._unit(self._kth(query.to(self.bank), self.bank))
        rounding = torch.finfo(self.bank.dtype).eps * (query.square().sum(1) + self.reach)
        unsure = torch.nonzero(rounding > SURE * gaps.square().sum(1)).flatten()
        if len(unsure) and self.bank.dtype != torch.float64:
            bank = centred_bank(self.rows, self.origin, torch.float64)
            gaps[unsure] = unit[unsure] - self._unit(self._kth(query[unsure], bank))
        return gaps

    def _kth(self, query: Float[Tensor, "row dim"], bank: Tensor) -> Int[Tensor, "row"]:
        lifted = torch.cat([query, torch.ones_like(query[:, :1])], 1)
        return largest_products(lifted, bank, self.k)[1][:, -1]

    def _unit(self, index: Int[Tensor, "row"]) -> Float[Tensor, "row dim"]:
        return to_unit_length(self.rows[index].double())


@final
@dataclass(frozen=True)
class KNN(Detector):
    """Distance of each row to its k-th nearest neighbour among the fitted rows, all of unit length.

    Usual rows lie close to many others. Only the direction of a row counts; a row of zeros is at
    distance 1 from everything. From a sample of ``m`` of ``n`` rows distances come out larger,
    while their order stays nearly the same, so calibrate on scores of the same sample.

    Range        [0, 2]; higher = more unusual.
    Cost         one pass; state 4 m dim bytes; O(m dim) per row, in float64 for a row so near the
                 bank, beside the bank's own spread, that float32 cannot tell which is the k-th.
    Assumes      lengths carry nothing; more than ``k`` rows (else the farthest, flag ``few_rows``);
                 ``k`` of at most half of the rows of a class. The flag ``many_neighbours`` assumes
                 ten classes: ``k`` above a twentieth of the rows in the bank.
    Differs      from the paper: a hash sample instead of a random one; the distance, not its
                 square.

    Parameters
    ----------
    k : int, default=50
        Which neighbour; below the number of fitted rows of a class.
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
        """Return the request for the sample."""
        return {"sample": HashSample(self.m)}

    def result(self, sample: HashSampleState) -> KNNScorer:
        """Scale the sampled rows to unit length."""
        if len(sample.rows) == 0:
            raise StateError("KNN: expected at least 1 row to fit on, got none.")
        flags = [] if sample.is_everything else ["sampled"]
        flags += neighbour_flags(self.k, len(sample.rows))
        origin = mean_unit_row(sample.rows)
        bank = centred_bank(sample.rows, origin)
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
            rows=sample.rows,
            origin=origin,
            bank=bank,
            reach=-2.0 * float(bank[:, -1].min()),
            k=min(self.k, len(sample.rows)),
        )


def to_unit_length(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Return rows of length 1 in at least float32; zero rows stay zero."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    length = wide.norm(dim=1, keepdim=True)
    if bool((length < 1 / largest(wide.dtype)).any()):  # their squares may vanish
        return unit_rows(wide)
    return wide / length


def unit_bank(
    x: Float[Tensor, "row dim"], weight: Float[Tensor, "row"]
) -> Float[Tensor, "row dim"]:
    """Return unit rows, each scaled by its weight."""
    bank = _empty_bank(len(x), x.shape[1], x.dtype, x.device)
    for part in _parts(x):
        unit = to_unit_length(x[part])
        bank[part] = unit * weight[part, None].to(unit)
    return bank


def mean_unit_row(x: Float[Tensor, "row dim"]) -> Float[Tensor, "dim"]:
    """Return the mean of the unit rows, in float64."""
    total = torch.stack([to_unit_length(x[part].double()).sum(0) for part in _parts(x)]).sum(0)
    return total / len(x)


def centred_bank(
    x: Float[Tensor, "row dim"], origin: Float[Tensor, "dim"], dtype: torch.dtype | None = None
) -> Float[Tensor, "row dim_and_square"]:
    """Return unit rows minus ``origin``, and minus half of each difference's squared length.

    The product with a query lifted by 1 is largest where the distance is least. If ``origin`` is
    the rows' mean, rows that share a direction keep the digits in which they differ.
    """
    bank = _empty_bank(len(x), x.shape[1] + 1, dtype or x.dtype, x.device)
    for part in _parts(x):
        apart = to_unit_length(x[part].double()) - origin
        bank[part, :-1] = apart.to(bank)
        bank[part, -1] = (apart.square().sum(1) / -2).to(bank)
    return bank


def _parts(x: Float[Tensor, "row dim"]) -> list[slice]:
    return [slice(start, start + BANK_ROWS) for start in range(0, len(x), BANK_ROWS)]


def _empty_bank(n: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for ``n`` rows, in at least float32.

    Up to ``TRANSPOSED`` rows are the transpose of a (dim, row) tensor: products of it with a few
    rows read less memory. In a larger bank the numbers of a row would lie too far apart.
    """
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    if n > TRANSPOSED:
        return torch.empty(n, dim, dtype=wide, device=device)
    return torch.empty(dim, n, dtype=wide, device=device).T
