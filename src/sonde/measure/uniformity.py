"""How uniformly the rows' directions are spread over the sphere.

For the mean cosine of rows alone see ``anisotropy``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.measure._reads import SampleInstrument
from sonde.stats import HashSampleState, unit_rows
from sonde.stats.sampled_rows import SampledRows

CHUNK = 1024


@final
@dataclass(frozen=True, kw_only=True)
class UniformityResult(Result):
    """Logarithm of the mean Gaussian kernel of two directions."""

    direction: Direction = "lower"


@final
@dataclass(frozen=True)
class Uniformity(SampleInstrument):
    """Logarithm of the mean Gaussian kernel of the directions of two rows.

    ``ln mean_ij exp(-t |u_i - u_j|^2)`` over pairs of rows of unlike groups, with ``u`` the row
    divided by its length. Rows of one direction have 0. The null is that of directions spread
    evenly over the sphere: ``-2 t + ln 0F1(dim / 2; t^2)``.

    Range        (-4 t, 0]; lower = more uniform. Invariant to  rotation, isotropic scale.
    Cost         one pass; state ``m`` rows; result O(m^2 dim), never more than 1,024 lines at once.
    Assumes      rows of one group (document) make no pair. Rows of zeros have no direction: they
                 are left out (flag ``dead``).
    Differs      from the paper: no pairs inside a group, and no row with itself.

    Parameters
    ----------
    t : float, default=2.0
        Sharpness of the kernel.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> round(uniformity(torch.eye(4)).value, 6)
    -4.0

    References
    ----------
    wang2020understanding
    """

    t: float = 2.0
    m: int = SAMPLE
    paper: ClassVar[str] = "wang2020understanding"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"t": 0.5, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, t="> 0")

    def result(self, sample: HashSampleState) -> UniformityResult:
        """Average the kernel over pairs of different groups."""
        rows = SampledRows.of((sample,))
        alive = rows.rows[0].ne(0).any(1).cpu()
        flags = rows.flags + (("dead",) if not bool(alive.all()) else ())
        rows = rows.take(alive)
        dim = rows.rows[0].shape[1]
        conventions = {"t": self.t, "pairs": "of unlike groups"}
        if rows.n_groups < 2:
            return UniformityResult(
                n=len(rows), flags=(*flags, "few_rows"), conventions=conventions
            )
        total, pairs = _kernel_sums(rows, self.t)
        mean = float(total.sum() / pairs.sum())
        # a row enters by both sides of its pairs
        error, how = rows.error_of_mean(2.0 * (total - mean * pairs) / pairs.mean())
        return UniformityResult(
            value=math.log(mean),
            se=None if error is None else float(error) / mean,
            null=even_spread(dim, self.t),
            n=len(rows),
            range=(-4.0 * self.t, 0.0),
            flags=flags,
            conventions={**conventions, "se": how},
        )


def _kernel_sums(rows: SampledRows, t: float) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Return the kernel's sum over each row's pairs, and their number."""
    unit = unit_rows(rows.rows[0])
    group = rows.group.to(unit.device)
    total: list[Tensor] = []
    for at, own in zip(unit.split(CHUNK), group.split(CHUNK), strict=True):
        kernel = torch.exp(2.0 * t * (at @ unit.T - 1.0))
        total.append(kernel.masked_fill_(own[:, None] == group, 0.0).sum(1))
    size = torch.bincount(rows.group)[rows.group]
    return torch.cat(total).cpu(), (len(rows) - size).double()


def even_spread(dim: int, t: float) -> float:
    """Return the value for uniform directions on the sphere in ``dim`` dimensions."""
    term = total = 1.0
    for k in range(1, 1000):
        term *= t * t / (k * (dim / 2.0 + k - 1.0))
        total += term
        if term < 1e-17 * total:
            break
    return math.log(total) - 2.0 * t


uniformity = as_function(Uniformity)
