"""How well each patch of an image is put together from a few patches of usual images.

Meant for few usual images: what lies between two patches of the dictionary is retrieved too.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_width
from sonde.detect.knn import unit_rows
from sonde.stats import Coreset, CoresetState, HashSample, HashSampleState, sparsemax

CHUNK_ENTRIES = 1 << 21


@final
@dataclass(frozen=True, kw_only=True)
class DictLookupScorer(Scorer):
    """How far patches point away from what the dictionary ``bank`` gives back; ``value`` counts it.

    ``radius`` is within which every fitted patch lies from the bank, where that is known.
    """

    bank: Float[Tensor, "entry dim"]
    temperature: float
    radius: float | None = None

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return half of one minus the cosine between each patch and its retrieved one."""
        check_width("DictLookup", x, self.bank.shape[1])
        out = torch.empty(len(x), dtype=self.bank.dtype, device=x.device)
        step = max(1, CHUNK_ENTRIES // len(self.bank))
        for start in range(0, len(x), step):
            query = unit_rows(x[start : start + step]).to(self.bank)
            query = query.nan_to_num(0.0)
            out[start : start + step] = (1 - (query * self._direction(query)).sum(1)) / 2
        return infinite_where_nonfinite(out, x)

    def weights(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row entry"]:
        """Return how much of each entry of the bank a patch is put together from."""
        return sparsemax(unit_rows(x).to(self.bank) @ self.bank.T / self.temperature)

    def _direction(self, query: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return unit_rows(sparsemax(query @ self.bank.T / self.temperature) @ self.bank)


@final
@dataclass(frozen=True)
class DictLookup(Detector):
    """One minus the cosine between each patch and a sparse mean of usual patches like it, halved.

    Patches of usual images are keys and values of a dictionary. A query ``q`` retrieves
    ``r = sum_i w_i s_i`` with ``w = sparsemax(q . s_i / temperature)`` over rows of unit length:
    only the few entries that are nearly as similar as the best one have a weight. What the
    dictionary does not hold comes back as something else.

    Range        [0, 1]; higher = more unusual. An image's score is that of its worst patch.
    Cost         one pass; state 4 m dim bytes; O(m (dim + log m)) per patch.
    Assumes      reducer ``patches``; lengths carry nothing. A patch of zeros scores 0.5.
    Differs      from the paper: no trained generators of queries, keys and values, and so no text;
                 cosines in place of dot products, whose sparsity depends on lengths.

    Parameters
    ----------
    m : int, default=4096
        Most rows in the dictionary.
    temperature : float, default=0.05
        What cosines are divided by; small: only the most similar entry counts.
    bank : {"sample", "coreset"}, default="sample"
        Rows chosen by a hash, which merges exactly, or farthest first, which keeps rare ones.

    Examples
    --------
    >>> scorer = DictLookup().fit([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> scorer.score(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [0.0, 0.5]

    References
    ----------
    dictas2025, martins2016sparsemax
    """

    m: int = 4096
    temperature: float = 0.05
    bank: Literal["sample", "coreset"] = "sample"
    paper: ClassVar[str] = "dictas2025"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64}, {"m": 16, "bank": "coreset"})

    def __post_init__(self) -> None:
        if self.m < 1 or not self.temperature > 0.0 or self.bank not in ("sample", "coreset"):
            raise InputError(
                "DictLookup: expected m of at least 1, a temperature above 0 and bank 'sample' or "
                f"'coreset', got {self}."
            )

    def reading(self) -> dict[str, Any]:
        """Read a row for each patch."""
        return {"reducer": "patches"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the rows of the dictionary."""
        if self.bank == "sample":
            return {"sample": HashSample(self.m)}
        return {"coreset": Coreset(self.m)}

    def result(
        self, sample: HashSampleState | None = None, coreset: CoresetState | None = None
    ) -> DictLookupScorer:
        """Bring the rows of the dictionary to unit length."""
        kept = sample if sample is not None else coreset
        if kept is None or len(kept.rows) == 0:
            raise StateError("DictLookup: expected at least 1 row to fit on, got none.")
        return DictLookupScorer(
            value=float(len(kept.rows)),
            n=kept.n,
            range=(0.0, 1.0),
            flags=() if kept.is_everything else ("sampled",),
            conventions={
                "value": "rows in the dictionary",
                "similarity": "cosine",
                "se": "not given for a scorer: calibrate its scores",
            },
            bank=unit_rows(kept.rows),
            temperature=self.temperature,
            radius=None if coreset is None else coreset.radius,
        )
