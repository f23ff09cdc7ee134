"""Entropy of a language model's next-token distribution, on average and along the text.

For the entropy at each block, read off through the head, see ``sonde.explain.lens``; for a score of
each text, ``token_statistics``; for a classifier's rows, the detector ``entropy``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.core.errors import ShapeError
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.core.tensors import as_tensor
from sonde.engine.copies import copied_rows, n_copies
from sonde.engine.errorbars import with_copies
from sonde.stats import TOKEN_METRICS, token_metrics

LOG_P, ENTROPY, QUANTILE, LOG_RANK = (
    TOKEN_METRICS.index(name) for name in ("log_p", "entropy", "rank_quantile", "log_rank")
)
SPANS = 32
"""Spans of positions: 0, 1, 2 to 3, 4 to 7 and so on."""


@final
@dataclass(frozen=True, kw_only=True)
class TokenEntropyResult(Result):
    """Mean entropy in nats; ``entropy`` holds each span of positions, from ``start`` on.

    ``surprise`` is the mean ``-ln p`` of the tokens that came, and equals ``value`` if the model is
    calibrated; ``perplexity`` is its exponential. Both are NaN if no tokens were given.
    """

    title: ClassVar[str] = "Entropy of the next token"
    direction: Direction = "higher"
    unit: str = "nats"
    start: Int[Tensor, "span"]
    entropy: Float[Tensor, "span"]
    surprise: float
    perplexity: float

    def chart(self) -> Chart:
        """Return a chart of the entropy along the text."""
        pairs = zip(self.start.tolist(), self.entropy.tolist(), strict=True)
        rows = [{"position": start, "entropy": value} for start, value in pairs]
        x = ChartAxis("position", title="from position")
        return curves(self.title, rows, x, ChartAxis("entropy", title="nats"))


@final
@dataclass(frozen=True)
class TokenEntropy(Instrument):
    """Mean entropy of a language model's next-token distribution, over all tokens.

    ``H = -sum_v p_v ln p_v`` before each token came, averaged over all and over spans of positions
    that double in length. A high value early in a text means lack of context, a high value
    everywhere a model that knows little. Far below ``surprise``, the model is sure but wrong.

    Range        [0, ln vocabulary], nats; higher = more undecided. The null is an even spread, ``ln
                 vocabulary``. Invariant to  adding a number to all logits.
    Cost         one pass; state 520 bytes; O(1) per token beyond the model's own logits.
    Assumes      rows of the reducer ``predictions`` at the logits of a causal language model, or
                 ``token_entropy`` on logits. Tokens of one document count as one group.

    Examples
    --------
    >>> p = torch.tensor([[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    >>> round(token_entropy(p.log()).value, 4), round((1.0397 + math.log(3)) / 2, 4)
    (1.0692, 1.0692)

    References
    ----------
    shannon1948theory
    """

    paper: ClassVar[str] = "shannon1948theory"

    def reading(self) -> dict[str, Any]:
        """Return the reading of predicted tokens' metrics."""
        return {"reducer": "predictions"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sums of each span."""
        return {"spans": _SpanSums()}

    def result(self, spans: "_SpanSumsState") -> TokenEntropyResult:
        """Average over all tokens, and within each span."""
        n, seen = spans.n, spans.count > 0
        start = 2 ** torch.arange(-1, SPANS - 1).double()
        surprise = float(spans.surprise.detach()) / n
        most = float(spans.most.detach())
        return TokenEntropyResult(
            value=spans.total.sum() / n,
            null=most,
            n=n,
            range=(0.0, most),
            conventions={"log": "e", "spans": "0, 1, 2 to 3, 4 to 7 and so on"},
            start=start.long()[seen.cpu()],
            entropy=(spans.total.detach() / spans.count)[seen],
            surprise=surprise,
            perplexity=math.exp(surprise) if surprise < 700 else math.inf,
        )


@dataclass(frozen=True)
class _SpanSumsState(State):
    """Number of tokens and sum of entropies, for each span of positions.

    ``surprise`` sums ``-ln p`` of all; ``most`` is the logarithm of the vocabulary's size.
    """

    count: Int[Tensor, "span"]
    total: Float[Tensor, "span"]
    surprise: Float[Tensor, ""]
    most: Float[Tensor, ""]

    @property
    def n(self) -> int:
        """Total number of tokens."""
        return int(self.count.sum())


@final
@dataclass(frozen=True)
class _SpanSums(Statistic[_SpanSumsState]):
    """Sums of entropy and surprise over token metrics, independent of how rows are divided."""

    def observe(self, x: Float[Tensor, "row dim"], position: Int[Tensor, "row"]) -> _SpanSumsState:
        """Return the sums of a batch of tokens."""
        if x.shape[1] != len(TOKEN_METRICS):
            raise ShapeError(
                f"TokenEntropy: expected rows of {len(TOKEN_METRICS)} token metrics, got "
                f"dim={x.shape[1]}. Read the model's logits with the reducer 'predictions', or "
                "call token_entropy on logits."
            )
        wide, span = x.double(), _span(position).to(x.device)
        total = torch.zeros(SPANS, dtype=torch.float64, device=x.device)
        total = total.index_add(0, span, wide[:, ENTROPY])
        most = (wide[:, LOG_RANK] - wide[:, QUANTILE].log()).amax()
        return _SpanSumsState(
            torch.bincount(span, minlength=SPANS), total, -wide[:, LOG_P].sum(), most
        )

    def merge(self, a: _SpanSumsState, b: _SpanSumsState) -> _SpanSumsState:
        """Return the joined sums."""
        most = torch.maximum(a.most, b.most)
        return _SpanSumsState(a.count + b.count, a.total + b.total, a.surprise + b.surprise, most)

    def influence(
        self,
        state: _SpanSumsState,
        gradient: _SpanSumsState,
        x: Float[Tensor, "row dim"],
        position: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times each token's entropy minus the mean entropy."""
        gap = x[:, ENTROPY].double() - state.total.sum() / state.n
        return gap * gradient.total[_span(position).to(gradient.total.device)].to(gap.device)


def _span(position: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return each position's span: 0 for position 0, else its number of bits."""
    bits = torch.frexp(position.clamp(min=0).double()).exponent.long()
    return bits.clamp(max=SPANS - 1)


def token_entropy(
    logits: Any,
    token: Any = None,
    *,
    mask: Any = None,
    position: Any = None,
    group: Any = None,
) -> TokenEntropyResult:
    """Return the entropy of next-token logits; see ``TokenEntropy``.

    Parameters
    ----------
    logits : array (document, position, vocabulary) or (row, vocabulary)
        Before the softmax.
    token : ints (document, position) or (row,), optional
        Which token came after each; without, ``surprise`` is NaN.
    mask : bools, as ``token``, optional
        Which positions count: no padding.
    position : ints, as ``token``, optional
        Positions of the tokens that came. If None, the first logits of a document predict position
        1; plain rows have position 0.
    group : array (document,) or (row,), optional
        Which documents or rows belong together; if None, the rows of a document, and equal
        documents or rows (flag ``copies``).

    Raises
    ------
    ShapeError
        If the axes are not these.
    """
    z = as_tensor("token_entropy", logits, "logits", ShapeError)
    if z.ndim not in (2, 3):
        raise ShapeError(
            "token_entropy: expected logits (document, position, vocabulary) or (row, vocabulary), "
            f"got shape {tuple(z.shape)}."
        )
    shape = z.shape[:-1]
    keep = _like("mask", mask, shape, torch.ones(shape, dtype=torch.bool)).bool()
    places = torch.zeros(shape) if z.ndim == 2 else torch.arange(1, shape[1] + 1).expand(shape)
    places = _like("position", position, shape, places)[keep].long()
    document = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)[keep]
    copies = None if group is not None else copied_rows([z.flatten(1)])
    names = (document if copies is None else copies[document]).tolist()
    if group is not None:
        given = group.tolist() if hasattr(group, "tolist") else list(group)
        if len(given) != shape[0]:
            raise ShapeError(f"token_entropy: expected {shape[0]} groups, got {len(given)}.")
        names = [given[i] for i in names]
    ids = [f"{i}" for i in document.tolist()]
    z = z[keep.to(z.device)]
    came = z.argmax(1) if token is None else _like("token", token, shape, None)[keep].long()
    rows = token_metrics(z, came.to(z.device))
    entropy = TokenEntropy().fit(rows, group=names, ids=ids, position=places)
    entropy = with_copies(entropy, n_copies(copies), shape[0])
    return (
        entropy if token is not None else replace(entropy, surprise=math.nan, perplexity=math.nan)
    )


def _like(name: str, given: Any, shape: torch.Size, default: Tensor | None) -> Tensor:
    column = default if given is None else as_tensor("token_entropy", given, name, ShapeError)
    if column is None or column.shape != shape:
        got = None if column is None else tuple(column.shape)
        raise ShapeError(f"token_entropy: expected {name} of shape {tuple(shape)}, got {got}.")
    return column.cpu()
