"""Keep the entropy of every attention head in a band, against collapse and uniformity.

For models that are trained without norms or without activation functions, whose heads drift to
either end. Attach it to the port ``probs`` of attentions that compute their probabilities.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.stats import query_entropy

SUMS = 0.05
"""Largest error of a sum of probabilities, in a half type."""


@final
class AttentionEntropy(nn.Module):
    """Squared distance of the entropy of attention from a band, mean over queries and heads.

    ``relu(|H / ln m - t_h| - tolerance)^2`` with the entropy ``H`` of a query's attention, the
    ``m`` keys that the query may see, and a threshold ``t_h`` in [0, 1] that each head learns. The
    share ``H / ln m`` is the number that ``sonde.measure.attention_entropy`` reports. Queries that
    see a single key are left out.

    Range        [0, 1); 0 = all heads inside their bands.
    Cost         O(query key) for each head.
    Assumes      probabilities that add up to 1 over the keys in sight.
    Differs      from the paper: each query's own maximum and a mean over queries. The paper's code
                 sums, and divides early queries of causal models by the maximum of the last query.
    Batching     mean, of examples with equally many queries.

    Parameters
    ----------
    threshold : float, default=0.5
        Where the thresholds start.
    tolerance : float, default=0.2
        Half of the width of the band.
    learned : bool, default=True
        Whether thresholds learn; the number of heads is found at the first call.

    References
    ----------
    jha2025entropy
    """

    paper: ClassVar[str] = "jha2025entropy"
    batching: ClassVar[str] = "mean"
    examples: ClassVar[tuple[dict, ...]] = (
        {"tolerance": 0.05},
        {"threshold": 0.2, "tolerance": 0.1, "learned": False},
    )

    def __init__(
        self, threshold: float = 0.5, tolerance: float = 0.2, learned: bool = True
    ) -> None:
        super().__init__()
        if not (0 <= threshold <= 1 and 0 <= tolerance < 1):
            raise InputError(
                "AttentionEntropy: expected threshold in [0, 1] and tolerance in [0, 1), got "
                f"{threshold} and {tolerance}."
            )
        self.start, self.tolerance = threshold, tolerance
        self.threshold = nn.UninitializedParameter() if learned else None
        self.register_load_state_dict_pre_hook(_as_many_heads)

    @in_float32
    def forward(
        self,
        probs: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean squared distance from the bands.

        Parameters
        ----------
        probs : Float[Tensor, "example head query key"]
            After the softmax.
        mask : Bool[Tensor, "..."], optional
            True where a query may see a key; broadcasts to ``probs``.
        """
        if probs.ndim != 4:
            raise InputError(
                "AttentionEntropy: expected attention (example, head, query, key), got shape "
                f"{tuple(probs.shape)}. Attach it to the weights of an attention, such as "
                "'layers.1:probs'."
            )
        seen = torch.ones_like(probs, dtype=torch.bool) if mask is None else mask
        if seen.ndim == 3:  # as the measure takes it: (example, query, key)
            seen = seen[:, None]
        nats, most = query_entropy(probs, seen.broadcast_to(probs.shape))
        off = (probs.detach() * seen).sum(-1).sub(1).abs()[most > 0]
        if bool((off > SUMS).any()):
            raise InputError(
                "AttentionEntropy: expected probabilities that sum to 1 over the keys that a query "
                f"may see, got sums off by {float(off.max()):.3g}. Pass weights after the softmax "
                "and before dropout, and the mask that the model used."
            )
        counted = most > 0
        if not bool(counted.any()):
            return 0.0 * probs.sum()
        share = nats / torch.where(counted, most, 1.0)
        beyond = (share - self._bands(probs)).abs() - self.tolerance
        return beyond.clamp(min=0).square()[counted].mean()

    def _bands(self, probs: Tensor) -> Tensor:
        """Return the middle of each head's band, and create the parameter at the first call."""
        if self.threshold is None:
            return torch.full_like(probs[0, :, :1, 0], self.start)
        if isinstance(self.threshold, nn.UninitializedParameter):
            self._make(probs.shape[1], probs.device)
        return self.threshold.clamp(0, 1)[:, None]

    def _make(self, n_heads: int, device: torch.device) -> None:
        assert isinstance(self.threshold, nn.UninitializedParameter)
        self.threshold.materialize((n_heads,), device, torch.float32)
        nn.init.constant_(self.threshold, self.start)


def _as_many_heads(loss: AttentionEntropy, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Create as many thresholds as the saved state contains."""
    saved = state.get(f"{prefix}threshold")
    if saved is not None and isinstance(loss.threshold, nn.UninitializedParameter):
        loss._make(len(saved), saved.device)
