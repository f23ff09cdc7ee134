"""Distance of each patch of an image to the nearest patch of normal images.

For images that need not be aligned: a patch may match a patch of any place.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.reduction import Reduced, reduce_scores
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.stats import Coreset, CoresetState

CHUNK_ENTRIES = 1 << 22
CLOSE = 3
ROUNDING = 8 * torch.finfo(torch.float32).eps
READERS = {1: "patches", 3: "patches3"}


@final
@dataclass(frozen=True, kw_only=True)
class PatchCoreScorer(Scorer):
    """Distance to the nearest row of ``bank``; ``value`` counts the rows of the bank.

    Every fitted row lies within ``radius`` of the bank, so the distance to the nearest fitted row
    is at most ``radius`` below the score, and never above it.
    """

    bank: Float[Tensor, "chosen dim"]
    radius: float
    b: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return each patch's Euclidean distance to the nearest row of the bank."""
        check_fitted_width("PatchCore", x, self.bank.shape[1])
        distances = nearest_of(x.to(self.bank), self.bank, 1)[0][:, 0]
        return infinite_where_nonfinite(distances, x)

    def contributions(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return each unit's squared difference to the nearest row; their sum gives the score."""
        check_fitted_width("PatchCore", x, self.bank.shape[1])
        near = nearest_of(x.to(self.bank), self.bank, 1)[1][:, 0]
        return (x.to(self.bank) - self.bank[near]).square()

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return one score per image, by default its largest patch score with density weighting."""
        plain = reduce_scores(scores, example, how)
        if how != "max" or self.b == 1 or len(self.bank) == 1:
            return plain
        finite = torch.isfinite(plain.score)
        worst = columns[0][plain.row[finite]].to(self.bank)
        weighed = plain.score.clone()
        weighed[finite] *= self.weight(worst).double().cpu()
        return replace(plain, score=weighed)

    def weight(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return ``1 - exp(s) / sum exp(d)`` over a row's distances ``d`` to part of the bank.

        ``s`` is the distance to the nearest row of the bank; the part are the ``b`` rows nearest to
        that row.
        """
        near = nearest_of(x, self.bank, 1)[1][:, 0]
        around = nearest_of(self.bank[near], self.bank, min(self.b, len(self.bank)))[1]
        far = (x[:, None].double() - self.bank[around].double()).norm(dim=2)
        own = (x.double() - self.bank[near].double()).norm(dim=1)
        share = torch.exp(own - torch.logsumexp(far, dim=1))
        return 1 - share


@final
@dataclass(frozen=True)
class PatchCore(Detector):
    """Distance of each patch to its nearest neighbour in a coreset of patches of normal images.

    The bank is chosen farthest first, so that rare usual patches are in it too. The score of an
    image is that of its worst patch, ``s (1 - exp(s) / sum_m exp(|x - m|))`` over the ``b`` rows of
    the bank around the nearest one: a neighbour that stands alone in the bank counts less.

    Range        [0, inf), in units of the states; higher = more unusual.
    Cost         one pass; state 4 m dim bytes; O(m dim) per patch that enters or is scored.
    Assumes      rows are read by ``reading()``: reducer ``patches3``, averages over 3 x 3 patches.
    Differs      from the paper: one site at a time; averages leave out what lies outside the image;
                 a bank of fixed size, which merges: a patch's score is at most ``radius`` above its
                 distance to the nearest of all fitted patches. So bundles that were fitted apart
                 and merged give distances of patches that differ from those of one pass by at most
                 the larger ``radius`` (flag ``rough_merge``).

    Parameters
    ----------
    m : int, default=2048
        Most rows in the bank.
    b : int, default=9
        Rows of the bank that weigh an image's score; 1 leaves the plain distance.
    window : {1, 3}, default=3
        Patches along a side of the neighbourhood that is averaged; 1 = each patch by itself.

    Examples
    --------
    >>> scorer = PatchCore().fit([[0.0, 0.0], [3.0, 4.0]])
    >>> scorer.score(torch.tensor([[3.0, 3.0], [0.0, 0.0]])).tolist()
    [1.0, 0.0]

    References
    ----------
    roth2022patchcore, gonzalez1985clustering
    """

    m: int = 2048
    b: int = 9
    window: int = 3
    paper: ClassVar[str] = "roth2022patchcore"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64}, {"m": 16, "b": 1, "window": 1})

    def __post_init__(self) -> None:
        if not 1 <= self.b <= self.m:
            raise InputError(f"PatchCore: expected 1 <= b <= m, got b={self.b} and m={self.m}.")
        check_ranges(self, window=READERS)

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per patch, averaged over its neighbourhood."""
        return {"reducer": READERS[self.window]}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the coreset."""
        return {"coreset": Coreset(self.m)}

    def result(self, coreset: CoresetState) -> PatchCoreScorer:
        """Use the coreset's rows as the bank."""
        flags = [] if coreset.is_everything else ["sampled", "rough_merge"]
        flags += ["few_rows"] if len(coreset.rows) < self.b else []
        return PatchCoreScorer(
            value=float(len(coreset.rows)),
            n=coreset.n,
            range=(0.0, float("inf")),
            flags=tuple(flags),
            conventions={
                "value": "rows in the bank",
                "radius": coreset.radius,
                "se": "not given for a scorer: calibrate its scores",
            },
            bank=coreset.rows,
            radius=coreset.radius,
            b=self.b,
        )


def nearest_of(
    x: Float[Tensor, "row dim"], bank: Float[Tensor, "chosen dim"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Return the ``k`` nearest rows of a bank and their distances, nearest first.

    Found by products in the rows' own type; the distances of a few more than ``k`` candidates are
    then computed from differences, so that near rows keep their digits. If rounding may hide a
    nearer row among the others, the products are computed again in double precision.
    """
    origin = bank.mean(0)
    centred = (bank - origin).T.contiguous()
    square = centred.square().sum(0)
    wide = min(len(bank), k + CLOSE - 1)
    distance = x.new_empty(len(x), k)
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    unsure = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    step = max(1, CHUNK_ENTRIES // max(len(bank), wide * bank.shape[1]))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        rough = torch.addmm(square, part - origin, centred, alpha=-2.0)
        rough = rough.nan_to_num(nan=torch.inf)
        best, near = rough.topk(min(len(bank), wide + 1), largest=False)
        if x.dtype == torch.float32 and wide < len(bank):
            scale = (part - origin).square().sum(1) + square.max()
            unsure[start : start + step] = best[:, wide] - best[:, k - 1] <= ROUNDING * scale
        near = near[:, :wide].sort(dim=1).values
        exact = (part[:, None] - bank[near]).norm(dim=2)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        distance[start : start + step] = exact.gather(1, order)
        index[start : start + step] = near.gather(1, order)
    if bool(unsure.any()):
        exact, index[unsure] = nearest_of(x[unsure].double(), bank.double(), k)
        distance[unsure] = exact.to(distance)
    return distance, index
