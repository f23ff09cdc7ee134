"""Decoding that contrasts the last layer with an earlier layer, chosen for each token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.edit.contrastive_decode import plausible_tokens
from sonde.tap import Decode, DecodeContext, OtherLogits


@final
@dataclass(frozen=True)
class DoLa(Decode):
    """Raise the tokens that the last layer finds more likely than an earlier layer does.

    Candidate blocks are read out through the final norm and the head. The block whose next token is
    furthest from the model's own (Jensen-Shannon divergence) is taken. The score is ``log p(y) -
    strength log p_early(y)`` among the plausible tokens. If no layer differs, strength 1 makes the
    plausible tokens equally likely.

    Range        scores in nats; -inf outside the plausible tokens, which are never empty.
    Cost         one read-out for each candidate and token; no further forward.
    Assumes      final norm and head alone give the logits after the last block.
    Differs      from the paper: the end of the text is not promoted; it is plausible only where the
                 model finds nothing more likely.

    Parameters
    ----------
    layers : tuple of int
        Candidate blocks, counted from 0; the paper takes every second block of one half of the
        model.
    strength : float, default=1.0
        Strength of the contrast; 0 gives the model's own logits.
    plausible : float, default=0.1
        In (0, 1]; the share of the greatest probability that a token needs.

    Examples
    --------
    >>> p = torch.tensor([[0.5, 0.4, 0.1]]).log()
    >>> same, far = p, torch.tensor([[0.8, 0.1, 0.1]]).log()
    >>> scores = DoLa((0, 1)).step(p, DecodeContext({"layer 0": same, "layer 1": far}))
    >>> int(scores.argmax())
    1

    References
    ----------
    chuang2024dola
    """

    layers: tuple[int, ...]
    strength: float = 1.0
    plausible: float = 0.1
    paper: ClassVar[str] = "chuang2024dola"

    def __post_init__(self) -> None:
        if not self.layers or not 0 < self.plausible <= 1:
            raise InputError(
                "DoLa: expected at least one layer and plausible in (0, 1], got "
                f"{self.layers} and {self.plausible}."
            )

    def reads(self) -> Mapping[str, OtherLogits]:
        """Request the logits of the candidate layers."""
        return {f"layer {layer}": OtherLogits(layer=layer) for layer in self.layers}

    def step(
        self, logits: Float[Tensor, "row token"], context: DecodeContext
    ) -> Float[Tensor, "row token"]:
        """Return the contrast with the most different candidate layer."""
        if self.strength == 0.0:
            return logits
        p = logits.log_softmax(1)
        early = torch.stack([context.others[name].log_softmax(1) for name in self.reads()])
        chosen = js_divergence(p, early).argmax(dim=0)
        low = early[chosen, torch.arange(len(p), device=p.device)]
        score = p - self.strength * low
        kept = plausible_tokens(p, self.plausible, context.ends)
        return score.masked_fill(~kept, -torch.inf)


def js_divergence(
    p: Float[Tensor, "row token"], q: Float[Tensor, "layer row token"]
) -> Float[Tensor, "layer row"]:
    """Return the Jensen-Shannon divergence of log-probabilities, in nats; 0 if they are equal."""
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=torch.float64)).to(p)
    left = (p.exp() * (p - middle).nan_to_num(0.0)).sum(-1)
    right = (q.exp() * (q - middle).nan_to_num(0.0)).sum(-1)
    return 0.5 * (left + right)
