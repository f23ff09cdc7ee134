"""Contrastive decoding for context that the model overlooks (overshadowed tokens)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.ranges import check_ranges
from sonde.edit.contrastive_decode import plausible_tokens
from sonde.tap import Decode, DecodeContext, OtherLogits
from sonde.tap.decoding.prompts import NextLogits, left_out, packed


@final
@dataclass(frozen=True)
class CoDa(Decode):
    """Raise the tokens whose probability depends on overshadowed tokens of the prompt.

    A token of the prompt is overshadowed if the prompt without it gives nearly the same next token.
    X' is the prompt without its overshadowed tokens, which leaves the tokens that drown them. The
    score is ``log p(y | X) + strength (log p(y | X) - log p(y | X'))``, ``bonus`` more for tokens
    that are plausible after X and not after X', and minus infinity for tokens that are implausible
    after X.

    Range        scores in nats; -inf outside the plausible tokens, which are never empty.
    Cost         a second forward for each new token; once, a forward for each prompt token.
    Assumes      a causal model; X' leaves tokens out and closes the gap.
    Differs      tokens are found once, at the end of the prompt; the threshold and the bonus are
                 ours.

    Parameters
    ----------
    strength : float, default=1.0
        Strength of the contrast; 0 gives the model's own logits.
    threshold : float, default=1.0
        Nats; a token is overshadowed if leaving it out changes every common plausible token by
        less. Tokens left out at a value below 0.1 move no answer by more, so the contrast is tiny.
    plausible : float, default=0.1
        In (0, 1]; the share of the greatest probability that a token needs.
    bonus : float, default=0.0
        Nats.

    Examples
    --------
    >>> p, prior = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()
    >>> CoDa(plausible=0.2).step(p, DecodeContext({"overlooking": prior})).argmax().item()
    1

    References
    ----------
    zhang2024overshadowing
    """

    strength: float = 1.0
    threshold: float = 1.0
    plausible: float = 0.1
    bonus: float = 0.0
    paper: ClassVar[str] = "zhang2024overshadowing"

    def __post_init__(self) -> None:
        check_ranges(self, plausible="(0, 1]", threshold=">= 0")

    def reads(self) -> Mapping[str, OtherLogits]:
        """Request the logits after the prompt without its overshadowed tokens."""
        return {"overlooking": OtherLogits(prompt=self.without_overshadowed)}

    def step(
        self, logits: Float[Tensor, "row token"], context: DecodeContext
    ) -> Float[Tensor, "row token"]:
        """Return the contrasted scores of the plausible tokens."""
        if self.strength == 0.0:
            return logits
        p, prior = logits.log_softmax(1), context.others["overlooking"].log_softmax(1)
        is_plausible = plausible_tokens(p, self.plausible, context.ends)
        only = is_plausible & ~plausible_tokens(prior, self.plausible)
        score = p + self.strength * (p - prior) + self.bonus * only
        return score.masked_fill(~is_plausible, -torch.inf)

    def overshadowed(
        self, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], logits: NextLogits
    ) -> Bool[Tensor, "row pos"]:
        """Return a mask of prompt tokens whose removal hardly changes the next token.

        The last token never counts, so that a prompt is left.
        """
        p = logits(ids, mask).log_softmax(1)
        without = left_out(ids, mask, logits).log_softmax(2)
        both = torch.stack([plausible_tokens(q, self.plausible) for q in without])
        both = both & plausible_tokens(p, self.plausible)
        change = (p - without).abs().masked_fill(~both, 0.0).amax(dim=2)
        small = (change < self.threshold) & both.any(dim=2)
        is_small = small.T.to(ids.device) & mask
        is_small[:, -1] = False
        return is_small

    def without_overshadowed(
        self, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], logits: NextLogits
    ) -> tuple[Int[Tensor, "row pos2"], Bool[Tensor, "row pos2"]]:
        """Return the prompts without their overshadowed tokens, aligned right."""
        return packed(ids, mask & ~self.overshadowed(ids, mask, logits))
