"""Cost of limiting attention to a pattern, layer by layer: which layers need distant tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.site import Site
from sonde.edit import LimitAttention
from sonde.engine.progress import Bar
from sonde.run.changing.judge import Difference, costs, difference
from sonde.tap import editing, live_stream
from sonde.tap.streams.answers import answers

ALL = "all layers together"
FIGURE = ".entropy"


@dataclass(frozen=True)
class PatternCost:
    """Cost of limiting one attention layer to the keys inside a pattern.

    Parameters
    ----------
    site : str
    kl : Difference
        Divergence of the model's answers from the old ones, nats per answer.
    loss : Difference or None
        Rise of the cross-entropy; None for data without labels.
    outside : float
        Share of its attention that lies outside the pattern, mean over queries.
    """

    site: str
    kl: Difference
    loss: Difference | None
    outside: float

    def is_far(self, tolerance: float) -> bool:
        """Return whether the cost exceeds a tolerance by more than two standard errors."""
        error = 0.0 if math.isnan(self.kl.se) else self.kl.se
        return self.kl.value - 2 * error > tolerance


def pattern_costs(
    model: Model,
    inputs: Inputs,
    limit: LimitAttention,
    sites: Sequence[str] = ("blocks:probs",),
    progress: bool = True,
) -> tuple[PatternCost, ...]:
    """Return the cost of a pattern at each attention layer, then at all of them together.

    A single attention has one entry.

    Parameters
    ----------
    model : Model
        Unchanged.
    inputs : Inputs
    limit : LimitAttention
        The pattern and its strength.
    sites : sequence of str, optional
        Attentions, at the port ``probs``; by default those of all blocks.
    progress : bool, default=True

    Raises
    ------
    InputError
        If there are no examples, or the pattern does not fit the tokens.
    SiteError
        If a site has no attention.
    """
    if not len(inputs):
        raise InputError("pattern_costs: expected at least one example, got none.")
    named = [site + FIGURE for site in sites]  # rows of probs are as wide as their texts are long
    stream = live_stream(model, inputs, named, "mean", logits_asked=True)
    attentions = [site.key.partition(FIGURE)[0] for site in stream.schema]
    logits = stream.logits_key
    trials = [*attentions, ALL] if len(attentions) > 1 else attentions
    measured = {site: _Outside(limit) for site in attentions}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in trials}
    with Bar("attention", len(inputs) * (1 + len(trials)), shown=progress) as bar:
        for batch in inputs.batches(0, len(inputs)):
            n = len(batch)
            old = answers(model, model.module, batch, logits)
            bar.advance(n)
            for trial in trials:
                alone = trial in measured
                with editing(
                    model,
                    measured[trial] if alone else limit,
                    [trial] if alone else attentions,
                    here=True,
                ):
                    new = answers(model, model.module, batch, logits)
                parts[trial].append(costs(old, new, n))
                bar.advance(n)
    shares = {site: one.share for site, one in measured.items()}
    shares[ALL] = sum(shares.values()) / len(shares)
    return tuple(_cost(site, parts[site], inputs, shares[site]) for site in trials)


def _cost(
    site: str, parts: list[tuple[Tensor, Tensor]], inputs: Inputs, outside: float
) -> PatternCost:
    losses, kls = (torch.cat(column) for column in zip(*parts, strict=True))
    loss = None if bool(losses.isnan().all()) else difference(losses, inputs.group_keys)
    return PatternCost(site, difference(kls, inputs.group_keys), loss, outside)


@final
@dataclass(frozen=True, eq=False)
class _Outside(Edit):
    """An edit that limits attention and records the fraction of attention that it removes."""

    limit: LimitAttention
    sums: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    @property
    def share(self) -> float:
        """Mean fraction of attention removed, over all real queries read."""
        return sum(s for s, _ in self.sums) / max(1, sum(n for _, n in self.sums))

    def apply(
        self, x: Float[Tensor, "example query heads_keys"], site: Site, context: EditContext
    ) -> Float[Tensor, "example query heads_keys"]:
        """Return the attention probabilities inside the limit."""
        gone = self.limit.outside(x, site, context)
        gone = gone if context.mask is None else gone[context.mask]
        self.sums.append((float(gone.sum()), gone.numel()))
        return self.limit.apply(x, site, context)
