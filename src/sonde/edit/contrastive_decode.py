"""Contrastive decoding: tokens that a good model predicts and a weaker model does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.tap import Decode, DecodeContext, OtherLogits
from sonde.tap.decoding.prompts import Rewording


@final
@dataclass(frozen=True, eq=False)
class ContrastiveDecode(Decode):
    """Raise the tokens that a model finds more likely than a weaker model, its amateur.

    Among the plausible tokens ``V = {y: p(y) >= plausible max p}`` the score is
    ``(1 + strength) log p(y) - strength log a(y)``; the others get minus infinity. The amateur is
    another model, an early layer of the same model, or the same model after another prompt, such as
    the prompt without its context (context-aware decoding). ``layers=(low, -1)`` adds the same
    contrast after the block ``low`` of both models (LOL).

    Range        scores in nats; -inf outside V, which is never empty.
    Cost         for each token a forward of the amateur, or the read-out of an early layer.
    Assumes      one vocabulary.
    Differs      LOL's weights are not in its abstract and are ours; the end of the text is not
                 promoted: it is plausible only where the model finds nothing more likely.

    Parameters
    ----------
    amateur : Model, nn.Module, int or None, default=None
        A model or the number of a block; None is the model that generates, after ``prompt``.
    prompt : callable or None, default=None
        What the amateur reads in place of the prompt, e.g. ``sonde.tap.OtherPrompts``.
    strength : float, default=0.5
        Strength of the contrast; 0 gives the model's own logits.
    plausible : float, default=0.1
        In (0, 1]; the share of the greatest probability that a token needs.
    layers : tuple of int, default=(-1,)
        Blocks after which model and amateur are contrasted; -1 is the last and must be there.
    layer_weight : float, default=0.3
        Weight of each contrast at a block that is not the last.
    guide : callable or None, default=None
        Prompts with a context that asks for the truth, e.g. ``sonde.tap.OtherPrompts``.
    guide_weight : float, default=1.0
        Weight of the change that the guiding context makes, relative to the amateur's.

    Examples
    --------
    >>> rule = ContrastiveDecode(amateur=0, strength=1.0, plausible=0.2)
    >>> p, a = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()
    >>> scores = rule.step(p, DecodeContext({"amateur": a}))
    >>> [round(x, 2) for x in scores.exp()[0].tolist()]  # p^2 / a
    [0.31, 1.6, 0.1]

    References
    ----------
    li2023contrastive, shi2024context, chen2024lol
    """

    amateur: Model | nn.Module | int | None = None
    prompt: Rewording | None = None
    strength: float = 0.5
    plausible: float = 0.1
    layers: tuple[int, ...] = (-1,)
    layer_weight: float = 0.3
    guide: Rewording | None = None
    guide_weight: float = 1.0
    paper: ClassVar[str] = "li2023contrastive"

    def __post_init__(self) -> None:
        check_ranges(self, plausible="(0, 1]")
        if self.amateur is None and self.prompt is None:
            raise InputError(
                "ContrastiveDecode: expected an amateur (a model or the number of a block) or a "
                "different prompt for it, got neither: the model would be contrasted with "
                "itself."
            )
        if -1 not in self.layers or (len(self.layers) > 1 and isinstance(self.amateur, int)):
            raise InputError(
                "ContrastiveDecode: expected layers with -1 (the last layer), and several "
                f"layers only with a whole model or another prompt, got {self.layers} of "
                f"{self.amateur!r}."
            )

    def reads(self) -> Mapping[str, OtherLogits]:
        """Request the amateur's logits, guided prompts, and both models' lower-layer logits."""
        guide = {} if self.guide is None else {"guide": OtherLogits(prompt=self.guide)}
        if isinstance(self.amateur, int):
            return {"amateur": OtherLogits(prompt=self.prompt, layer=self.amateur), **guide}
        needs = {"amateur": OtherLogits(self.amateur, self.prompt), **guide}
        for layer in self._lower():
            needs[f"layer {layer}"] = OtherLogits(layer=layer)
            needs[f"amateur layer {layer}"] = OtherLogits(self.amateur, self.prompt, layer)
        return needs

    def step(
        self, logits: Float[Tensor, "row token"], context: DecodeContext
    ) -> Float[Tensor, "row token"]:
        """Return the contrasted scores of the plausible tokens."""
        if self.strength == 0.0:
            return logits
        others = {name: x.log_softmax(1) for name, x in context.others.items()}
        p = logits.log_softmax(1)
        score = self._contrast(p, others["amateur"])
        for layer in self._lower():
            low = self._contrast(others[f"layer {layer}"], others[f"amateur layer {layer}"])
            score = score + self.layer_weight * low
        if self.guide is not None:
            score = score + self.strength * self.guide_weight * (others["guide"] - p)
        kept = plausible_tokens(p, self.plausible, context.ends)
        return score.masked_fill(~kept, -torch.inf)

    def _contrast(self, p: Tensor, amateur: Tensor) -> Tensor:
        return p + self.strength * (p - amateur)

    def _lower(self) -> list[int]:
        return [layer for layer in self.layers if layer != -1]


def plausible_tokens(
    p: Float[Tensor, "row token"], share: float, ends: Sequence[int] = ()
) -> Bool[Tensor, "row token"]:
    """Return the tokens with at least a fraction of the largest probability.

    Parameters
    ----------
    p : Float[Tensor, "row token"]
        Log-probabilities, in nats.
    share : float
    ends : sequence of int, default=()
        Tokens that end a text: plausible only if none is more likely. An early layer or an amateur
        never expects the end, so a contrast would promote it at the first chance.
    """
    most = p.amax(dim=1, keepdim=True)
    kept = p >= most + torch.tensor(share, dtype=torch.float64).log().to(p)
    if ends:
        at = torch.tensor(list(ends), device=p.device)
        kept = kept.index_fill(1, at, False) | kept.logical_and(p >= most)
    return kept
