"""Score texts by a language model's surprise, per token and as a whole.

For questions that one number of each token answers: unlikely text, memorised text, machine text.
Learned weights over the same numbers are ``PAWN``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.reduction import OWN, Reduced, reduce_scores
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width
from sonde.stats import TOKEN_METRICS, Moments, MomentsState
from sonde.stats.sequences import by_example

Name = Literal[
    "mean_nll",
    "max_nll",
    "mean_entropy",
    "low_rank_share",
    "min_k",
    "nll_variance",
    "fast_curvature",
    "lrr",
]
LOG_P, ENTROPY, LOG_RANK, VARIANCE = (
    TOKEN_METRICS.index(name) for name in ("log_p", "entropy", "log_rank", "log_p_variance")
)
LEAST_VARIANCE = 1e-8
LEAST_LOG_RANK = math.log(2.0)


@final
@dataclass(frozen=True, kw_only=True)
class TokenStatisticsScorer(Scorer):
    """A statistic of token metrics; ``value`` is the fitted tokens' mean surprise."""

    detector: "TokenStatistics"

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the score of each token."""
        check_fitted_width("TokenStatistics", x, len(TOKEN_METRICS))
        metrics = torch.nan_to_num(x.double(), posinf=0.0, neginf=0.0)
        scores = self.detector.sign * self._tokens(metrics)
        return infinite_where_nonfinite(scores, x)

    def _tokens(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        nll = -x[:, LOG_P]
        match self.detector.statistic:
            case "mean_entropy":
                return x[:, ENTROPY]
            case "low_rank_share":
                return self._is_low(x)
            case "fast_curvature":
                return (nll - x[:, ENTROPY]) / x[:, VARIANCE].clamp(min=LEAST_VARIANCE).sqrt()
            case "lrr":
                return -nll / x[:, LOG_RANK].clamp(min=LEAST_LOG_RANK)
            case _:
                return nll

    def _is_low(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        return (x[:, LOG_RANK] > math.log(self.detector.rank + 0.5)).to(x.dtype)

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return each text's statistic, or another reduction of its tokens' scores."""
        if how != OWN:
            return reduce_scores(scores, example, how)
        x = columns[0].detach().double().cpu()
        scores = scores.detach().double().cpu()
        texts = by_example(example, scores, descending=True)
        values = [self._text(x[rows], scores[rows]) for rows in texts.each()]
        return Reduced(texts.example, torch.tensor(values, dtype=torch.float64), texts.first)

    def _text(self, x: Float[Tensor, "row dim"], scores: Float[Tensor, "row"]) -> float:
        if not bool(torch.isfinite(x).all()):
            return math.inf
        sign, nll = self.detector.sign, -x[:, LOG_P]
        match self.detector.statistic:
            case "max_nll":
                return sign * float(nll.max())
            case "min_k":
                count = max(1, int(self.detector.k * len(nll)))
                return sign * float(nll.topk(count).values.mean())
            case "nll_variance":
                return sign * float(nll.var(correction=0))
            case "fast_curvature":
                spread = x[:, VARIANCE].sum().clamp(min=LEAST_VARIANCE).sqrt()
                return sign * float((nll - x[:, ENTROPY]).sum() / spread)
            case "lrr":
                return -sign * float(nll.sum() / x[:, LOG_RANK].sum().clamp(min=LEAST_LOG_RANK))
            case _:
                return float(scores.mean())


@final
@dataclass(frozen=True)
class TokenStatistics(Detector):
    """A statistic of the likelihood of a text's tokens under a language model.

    With ``direction="high"`` a text scores high if the model did not expect it; with ``"low"``, if
    the model expected it too well, like machine text and memorised text. Of a text's tokens, each
    with ``nll = -ln p``, the entropy ``H`` and the variance ``V`` of ``ln p`` before it came:

    ``mean_nll``, ``max_nll``, ``nll_variance``, ``mean_entropy``: as they say; ``min_k``: the mean
    of the share ``k`` of largest ``nll``; ``low_rank_share``: the share of tokens ranked below the
    ``rank`` likeliest; ``fast_curvature``: ``sum(nll - H) / sqrt(sum V)``; ``lrr``: minus
    ``sum nll / sum ln rank``, ranks from 1.

    A token's own score is its term: ``nll``, ``H``, 0 or 1, ``(nll - H) / sqrt(V)``, minus
    ``nll / ln rank``. Rows come by ``sonde.read(model, data, **TokenStatistics().reading())``.

    Range        (-inf, inf), nats, or a plain number for shares and ratios; higher = more unusual.
    Cost         one pass; state 120 bytes; O(1) per token beyond the model's own logits.
    Assumes      rows of the reducer ``predictions`` at the logits of a causal language model.
    Differs      from the papers: the last two carry the sign of the others, so that ``"low"`` is
                 machine text for all; ``sum V`` is held to at least 1e-8, ``ln rank`` to ``ln 2``.

    Parameters
    ----------
    statistic : str, default="mean_nll"
        Name of the statistic, from the list above.
    direction : {"high", "low"}, default="high"
        Which end is unusual.
    k : float, default=0.2
        Share of the tokens of ``min_k``; at least one.
    rank : int, default=10
        Rank up to which a token counts in ``low_rank_share``, at least 1.

    Examples
    --------
    >>> from sonde.stats import token_metrics
    >>> p = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).double()
    >>> x = token_metrics(p.log().expand(2, 4), torch.tensor([0, 3]))
    >>> scorer = TokenStatistics().fit(x)
    >>> scorer.score(x).round(decimals=4).tolist()
    [0.6931, 2.3026]
    >>> text = scorer.reduced(scorer.score(x), torch.tensor([0, 0]), "own", x)
    >>> text.score.round(decimals=4).tolist(), text.row.tolist()
    ([1.4979], [1])

    References
    ----------
    shi2024mink, bao2024fastdetectgpt, su2023detectllm
    """

    statistic: str = "mean_nll"
    direction: str = "high"
    k: float = 0.2
    rank: int = 10
    paper: ClassVar[str] = "bao2024fastdetectgpt"
    reduces: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"statistic": "min_k", "k": 0.1},
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            statistic=get_args(Name),
            direction=("high", "low"),
            k="(0, 1]",
            rank=">= 1",
        )

    @property
    def sign(self) -> float:
        """1 if surprising text is outlying, else -1."""
        return 1.0 if self.direction == "high" else -1.0

    def reading(self) -> dict[str, Any]:
        """Return the reading of the metrics of predicted tokens."""
        return {"reducer": "predictions"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each metric's mean."""
        return {"metrics": Moments("diag")}

    def result(self, metrics: MomentsState) -> TokenStatisticsScorer:
        """Return the scorer; only the reported mean surprise is fitted."""
        if len(metrics.mean) != len(TOKEN_METRICS):
            raise ShapeError(
                f"TokenStatistics: expected rows of {len(TOKEN_METRICS)} token metrics, got "
                f"dim={len(metrics.mean)}. Read the model's logits with the reducer 'predictions'."
            )
        return TokenStatisticsScorer(
            value=-float(metrics.mean[LOG_P]),
            n=metrics.n,
            unit="nats",
            conventions={"value": "mean -ln p of the fitted tokens"},
            detector=self,
        )
