"""Mean cosine between a block's input and output."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.state import State
from sonde.core.statistic import Span, Statistic


@dataclass(frozen=True)
class CosinesState(State):
    """Sums over ``n`` rows of the cosine and its square; ``zeros`` further rows had none."""

    n: int
    sum: Float[Tensor, ""]
    square: Float[Tensor, ""]
    zeros: int


@final
@dataclass(frozen=True)
class Cosines(Statistic[CosinesState]):
    """Sums of cosines between paired rows, independent of how rows are divided."""

    span: ClassVar[Span] = "pair"

    def observe(self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]) -> CosinesState:
        """Return the sums of a batch."""
        cosine, zero = _cosines(x, y)
        return CosinesState(
            int((~zero).sum()), cosine.sum(), cosine.square().sum(), int(zero.sum())
        )

    def merge(self, a: CosinesState, b: CosinesState) -> CosinesState:
        """Return the joined sums."""
        return CosinesState(a.n + b.n, a.sum + b.sum, a.square + b.square, a.zeros + b.zeros)

    def influence(
        self,
        state: CosinesState,
        gradient: CosinesState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times the contribution of each row's cosine and its square."""
        cosine, zero = _cosines(x, y)
        mean, square = state.sum / max(state.n, 1), state.square / max(state.n, 1)
        effect = (cosine - mean) * gradient.sum + (cosine.square() - square) * gradient.square
        return effect.masked_fill(zero, 0.0)


def _cosines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"UpdateSimilarity: expected two sites of the same width, got {x.shape[1]} and "
            f"{y.shape[1]}. Compare the input and the output of a residual block, or use cka."
        )
    x, y = x.double(), y.double()
    lengths = x.norm(dim=1) * y.norm(dim=1)
    zero = lengths == 0
    return (x * y).sum(1) / lengths.masked_fill(zero, 1.0), zero


@final
@dataclass(frozen=True, kw_only=True)
class UpdateSimilarityResult(Result):
    """Mean cosine and its standard deviation over rows; ``n_zero`` rows had no direction."""

    direction: Direction = "higher"
    spread: float
    n_zero: int


@final
@dataclass(frozen=True)
class UpdateSimilarity(Instrument):
    """Mean cosine between a row at the first site and its row at the second site.

    One minus the value is the block influence by which layers are pruned. One unit with a huge
    constant value brings it near 1 whatever the block does: read ``update_size`` beside it.

    Range        [-1, 1]; higher = the block turns rows less.
    Cost         one pass; state 32 bytes; result O(1).
    Assumes      two sites of equal width; rows of zeros are left out and counted.
    Differs      from the paper: the similarity itself, not one minus it.

    Examples
    --------
    >>> update_similarity([[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]]).value
    0.5

    References
    ----------
    men2024shortgpt
    """

    span: ClassVar[Span] = "pair"
    equal_widths: ClassVar[bool] = True
    paper: ClassVar[str] = "men2024shortgpt"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for sums of cosines."""
        return {"cosines": Cosines()}

    def result(self, cosines: CosinesState) -> UpdateSimilarityResult:
        """Divide the sums by the number of rows."""
        if cosines.n == 0:
            return UpdateSimilarityResult(
                flags=("dead",), null=0.0, range=(-1.0, 1.0), spread=math.nan, n_zero=cosines.zeros
            )
        mean = cosines.sum / cosines.n
        variance = float((cosines.square / cosines.n - mean.square()).detach())
        return UpdateSimilarityResult(
            value=mean,
            null=0.0,
            n=cosines.n,
            range=(-1.0, 1.0),
            conventions={"centered": False},
            spread=math.sqrt(max(variance, 0.0)),
            n_zero=cosines.zeros,
        )


update_similarity = as_function(UpdateSimilarity)
