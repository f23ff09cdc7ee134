"""Energy weighted by similarity to confident fitted rows."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, SondeWarning
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.detect._neighbours import neighbour_flags
from sonde.detect.energy import energy_of
from sonde.detect.knn import CHUNK, to_unit_length, unit_bank
from sonde.stats import HashSample, HashSampleState, largest_products


@final
@dataclass(frozen=True, kw_only=True)
class NNGuideScorer(Scorer):
    """Energy times the mean of the ``k`` largest products with the rows in ``bank``.

    The bank holds unit rows times their log evidence; ``value`` counts them.
    """

    bank: Float[Tensor, "sample dim"]
    k: int
    n_classes: int

    def score(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return the guided energy of each row."""
        check_fitted_width("NNGuide", x, self.bank.shape[1])
        check_fitted_width("NNGuide", logits, self.n_classes, "classes")
        guidance = [
            largest_products(to_unit_length(part).to(self.bank), self.bank, self.k)[0].mean(1)
            for part in x.split(CHUNK)
        ]
        return infinite_where_nonfinite(
            torch.cat(guidance) * energy_of(logits, 1.0), x, logits=logits
        )


@final
@dataclass(frozen=True)
class NNGuide(Detector):
    """Energy of each row, weighted by its nearest confident fitted rows.

    ``-g(x) ln sum_c exp f_c`` where ``g`` is the mean of the ``k`` largest inner products of the
    unit row with fitted unit rows times their log evidence. A row far from the data has little
    guidance, however large its logits.

    Range        (-inf, inf), squared units of the logits; higher = more unusual.
    Cost         one pass; state 4 m (dim + classes) bytes; O(m dim) per row.
    Assumes      rows are the input of the model's final linear layer; positive log evidence; where
                 fitted rows have less, the guidance turns round, which is counted in
                 ``conventions`` and warned of; ``k`` of at most half of the fitted rows of a
                 predicted class (else flag ``many_neighbours``).
    Differs      from the paper: a hash sample instead of a random one.

    Parameters
    ----------
    k : int, default=10
        How many neighbours guide.
    m : int, default=10000
        Most rows that are kept.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> scorer = NNGuide(k=1).fit(x, logits=x)
    >>> rows, logits = torch.tensor([[[0.0, 3.0], [-3.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]]])
    >>> scorer.score(rows, logits).double().round(decimals=3).tolist()
    [-6.484, -0.0]

    References
    ----------
    park2023nnguide
    """

    k: int = 10
    m: int = 10_000
    paper: ClassVar[str] = "park2023nnguide"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 3, "m": 64}, {"k": 50, "m": 256})

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.m:
            raise InputError(f"NNGuide: expected 1 <= k <= m, got k={self.k} and m={self.m}.")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for a sample of rows with their logits."""
        return {"sample": HashSample(self.m), "logits": HashSample(self.m, column="logits")}

    def result(self, sample: HashSampleState, logits: HashSampleState) -> NNGuideScorer:
        """Scale the sampled rows by their confidence."""
        evidence = -energy_of(logits.rows, 1.0)
        n_negative = int((evidence < 0).sum())
        if n_negative:
            warnings.warn(
                f"NNGuide: {n_negative} of {len(evidence)} fitted rows have negative log "
                "evidence, which reverses the sign of their guidance. Use KNN for a model with "
                "such logits.",
                SondeWarning,
                stacklevel=2,
            )
        n_rows = len(sample.rows)
        flags = [] if sample.is_everything else ["sampled"]
        n_classes = len(logits.rows.argmax(1).unique())
        flags += neighbour_flags(self.k, n_rows, n_classes)
        return NNGuideScorer(
            value=float(n_rows),
            n=sample.n,
            unit="squared units of the logits",
            flags=tuple(flags),
            conventions={
                "value": "rows in the bank",
                "negative_evidence": n_negative,
                "se": "not given for a scorer: calibrate its scores",
            },
            bank=unit_bank(sample.rows, evidence),
            k=min(self.k, n_rows),
            n_classes=logits.rows.shape[1],
        )
