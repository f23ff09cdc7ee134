"""Emulate fine-tuning of a large model: add a small tuned model's change to its logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.tap import Decode, DecodeContext, OtherLogits


@final
@dataclass(frozen=True, eq=False)
class EmulatedFinetune(Decode):
    """Add the change that fine-tuning made to the log-probabilities of a small model.

    ``log p(y) + strength (log tuned(y) - log untuned(y)) - log Z``, each of them normalised first.
    If a large model generates, this scales tuning up. If a small model generates, with large models
    before and after tuning, this scales knowledge down.

    Range        log-probabilities in nats.
    Cost         for each token a forward of the untuned model and of each tuned model.
    Assumes      one vocabulary.
    Differs      tokens outside the nuclei of both the generating and the tuned model keep their
                 share; several tuned models may be mixed.

    Parameters
    ----------
    tuned : Model, nn.Module, or a tuple of these
        Fine-tuned small model, or several of them.
    untuned : Model or nn.Module
        The same model before its tuning.
    strength : float, default=1.0
        Factor of the change; 0 gives the model's own probabilities.
    nucleus : float, default=0.95
        In (0, 1]. The likeliest tokens that together have this probability are shifted; 1 shifts
        all tokens.
    weights : tuple of float or None, default=None
        Weights of the tuned models; None: equal weights with sum 1.

    Examples
    --------
    >>> large, tuned, untuned = ([0.6, 0.4], [0.5, 0.5], [0.8, 0.2])
    >>> others = {"tuned 0": torch.tensor([tuned]).log(), "untuned": torch.tensor([untuned]).log()}
    >>> rule = EmulatedFinetune(nn.Identity(), nn.Identity(), nucleus=1.0)
    >>> p = rule.step(torch.tensor([large]).log(), DecodeContext(others)).exp()
    >>> [round(x, 3) for x in p[0].tolist()]  # in proportion 0.6 * 5 / 8 to 0.4 * 5 / 2
    [0.273, 0.727]

    References
    ----------
    mitchell2024emulator
    """

    tuned: Model | nn.Module | tuple[Model | nn.Module, ...]
    untuned: Model | nn.Module
    strength: float = 1.0
    nucleus: float = 0.95
    weights: tuple[float, ...] | None = None
    paper: ClassVar[str] = "mitchell2024emulator"

    def __post_init__(self) -> None:
        check_ranges(self, nucleus="(0, 1]")
        n = len(self._tuned())
        if n == 0 or (self.weights is not None and len(self.weights) != n):
            raise InputError(
                f"EmulatedFinetune: expected a weight for each tuned model, got {self.weights} "
                f"for {n} models."
            )

    def reads(self) -> Mapping[str, OtherLogits]:
        """Request the logits of the tuned models and of the untuned model."""
        tuned = {f"tuned {i}": OtherLogits(model) for i, model in enumerate(self._tuned())}
        return tuned | {"untuned": OtherLogits(self.untuned)}

    def step(
        self, logits: Float[Tensor, "row token"], context: DecodeContext
    ) -> Float[Tensor, "row token"]:
        """Return the shifted log-probabilities."""
        if self.strength == 0.0:
            return logits
        n = len(self._tuned())
        others = {name: x.log_softmax(1) for name, x in context.others.items()}
        p, untuned = logits.log_softmax(1), others["untuned"]
        shift, shifted = torch.zeros_like(p), _nucleus(p, self.nucleus)
        for i, weight in enumerate(self.weights or (1 / n,) * n):
            tuned = others[f"tuned {i}"]
            shift = shift + weight * (tuned - untuned)
            shifted = shifted | _nucleus(tuned, self.nucleus)
        return (p + self.strength * shift.masked_fill(~shifted, 0.0)).log_softmax(1)

    def _tuned(self) -> tuple[Model | nn.Module, ...]:
        return self.tuned if isinstance(self.tuned, tuple) else (self.tuned,)


def _nucleus(p: Float[Tensor, "row token"], share: float) -> Bool[Tensor, "row token"]:
    """Return the smallest set of likely tokens with a fraction of the probability."""
    if share == 1.0:
        return torch.ones_like(p, dtype=torch.bool)
    values, order = p.exp().sort(dim=1, descending=True)
    before = values.cumsum(dim=1) - values
    return torch.zeros_like(p, dtype=torch.bool).scatter(1, order, before < share)
