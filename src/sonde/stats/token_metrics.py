"""Seven numbers of each predicted token, such as its log-probability, in place of all logits."""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.wording import plural

TOKEN_METRICS: Final = (
    "log_p",
    "entropy",
    "max_log_p",
    "rank_quantile",
    "top_p_mass",
    "log_rank",
    "log_p_variance",
)
CHUNK_ENTRIES = 1 << 20


def token_metrics(
    logits: Float[Tensor, "row vocabulary"],
    token: Int[Tensor, "token"],
    source: Int[Tensor, "token"] | None = None,
) -> Float[Tensor, "token 7"]:
    """Return each row of logits' metrics of the actual next token, as in ``TOKEN_METRICS``.

    With ``P = softmax(logits)`` and ``y`` the token: ``ln P(y)``; the entropy of ``P``;
    ``max ln P``; the share of the vocabulary at least as likely as ``y``; the mass of that share;
    the logarithm of its size (ranks count from 1, and of equal tokens the last); and the variance
    of ``ln P`` under ``P``. Both shares count ``y`` itself. All in nats. ``sum P ln P`` is minus
    the entropy, ``sum P (ln P)^2`` the variance plus its square.

    Computed in at least 32 bits, a few rows at a time: nothing of the size of ``logits`` is made.

    Parameters
    ----------
    logits : Float[Tensor, "row vocabulary"]
        Logits from which each row's next token is predicted.
    token : Int[Tensor, "token"]
        Ids of the tokens that came.
    source : Int[Tensor, "token"], optional
        Which row of ``logits`` predicted each token; without, the row of its own number.

    Examples
    --------
    >>> p = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).double()
    >>> token_metrics(p.log(), torch.tensor([1]))[0, :5].round(decimals=4).tolist()
    [-1.6094, 1.2206, -0.6931, 0.75, 0.9]

    References
    ----------
    miralles2025pawn, bao2024fastdetectgpt
    """
    n_tokens = logits.shape[1]
    if source is None and len(token) != len(logits):
        raise ShapeError(
            f"token_metrics: expected a token for each of {plural(len(logits), 'row')} of "
            "logits, got "
            f"{len(token)}. Pass source= where only some rows count."
        )
    if len(token) and not 0 <= int(token.min()) <= int(token.max()) < n_tokens:
        raise ShapeError(
            f"token_metrics: expected ids below {n_tokens}, the width of the logits, got "
            f"{int(token.min())} to {int(token.max())}. Read the module that returns the logits."
        )
    size = max(1, CHUNK_ENTRIES // n_tokens)
    parts = [
        _metrics(
            logits[start : start + size]
            if source is None
            else logits.index_select(0, source[start : start + size]),
            token[start : start + size],
        )
        for start in range(0, max(1, len(token)), size)
    ]
    return torch.cat(parts)


def _metrics(logits: Tensor, token: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    own = wide.gather(1, token[:, None])
    likely = wide >= own
    log_p = torch.log_softmax(wide, dim=1)
    p = log_p.exp()
    finite = log_p.masked_fill(p == 0, 0.0)
    entropy = -(p * finite).sum(1)
    count = likely.sum(1).to(wide.dtype)
    columns = (
        log_p.gather(1, token[:, None])[:, 0],
        entropy,
        log_p.amax(1),
        count / wide.shape[1],
        (p * likely).sum(1),
        count.log(),
        (p * (finite + entropy[:, None]).square()).sum(1),
    )
    return torch.stack(columns, dim=1)
