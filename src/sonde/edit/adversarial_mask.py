"""Silence the channels that cause wrong answers after small changes of the weights.

For convolutional classifiers and a few hundred clean images with labels, where a backdoor is
suspected. Trains one number for each channel, not the weights.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.edit._channels import Scaled, accuracy, channel_layers, labelled, silenced
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent
from sonde.tap import cross_entropy, editing
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde.weights.tuning import Cycle, row_losses

Factors = dict[str, Float[Tensor, "channel"]]


@final
@dataclass(frozen=True)
class AdversarialMask(Rewrite):
    """Learn the channels that clean images need under the worst small change of the weights.

    Every channel has a mask in [0, 1] that multiplies its weights. The masks minimise ``alpha
    L(m w, b) + (1 - alpha) max L((m + d) w, (1 + e) b)`` over ``|d|, |e| <= eps``, the worst
    changes found by one step along the sign of the gradient from a random point. Channels whose
    mask ends below ``threshold`` are silenced.

    Range        weights and biases of silenced channels are 0; all others stay.
    Cost         ``steps`` times three forwards and backwards of a batch.
    Assumes      convolutions, masked at the batch norm behind them if there is one; clean images.
    Differs      from the reference: masks multiply the batch norm's own weight if there is one,
                 else the convolution's.

    Parameters
    ----------
    eps : float, default=0.4
        Largest relative change.
    alpha : float, default=0.2
        Weight of the loss without a change.
    rate : float, default=0.2
        Step size of gradient descent with momentum 0.9.
    steps : int, default=200
        Number of steps.
    threshold : float, default=0.2
        Mask value below which a channel is removed, in [0, 1].
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    wu2021anp
    """

    eps: float = 0.4
    alpha: float = 0.2
    rate: float = 0.2
    steps: int = 200
    threshold: float = 0.2
    seed: int = 0
    paper: ClassVar[str] = "wu2021anp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 3, "rate": 9.0, "threshold": 0.9},)

    def __post_init__(self) -> None:
        check_ranges(self, eps="> 0", rate="> 0", steps="> 0", alpha="[0, 1]", threshold="(0, 1)")

    def reads(self) -> dict[str, Examples]:
        """Read clean examples with labels."""
        return {"clean": Examples()}

    def planned(self, model: Model, clean: Inputs) -> RewritePlan:
        """Return the changes that silence channels."""
        labelled("AdversarialMask", clean)
        layers = channel_layers("AdversarialMask", model.module)
        masks = self.masks(model, clean)
        which = {name: mask < self.threshold for name, mask in masks.items()}
        plan = RewritePlan.of(
            model,
            silenced(layers, which),
            f"adversarial_mask(eps={self.eps:g}, alpha={self.alpha:g})",
            n_silenced=float(sum(int(one.sum()) for one in which.values())),
            n_channels=float(sum(len(one) for one in which.values())),
            accuracy_before=accuracy(model, model.module, clean),
        )
        after = accuracy(model, plan.fold(model), clean)
        return RewritePlan.of(
            model, plan.changes, plan.method, **plan.figures, accuracy_after=after
        )

    def masks(self, model: Model, clean: Inputs) -> Factors:
        """Return the mask of each channel, by layer."""
        layers = channel_layers("AdversarialMask", model.module)
        draw = torch.Generator().manual_seed(self.seed)
        masks = {name: torch.ones(len(one.weight)).requires_grad_() for name, one in layers.items()}
        descent = Descent(
            "AdversarialMask",
            masks.values(),
            self.rate,
            partial(torch.optim.SGD, momentum=0.9),
        )
        losses, batches, scaled = (
            row_losses(model, model.module, clean),
            Cycle(clean),
            Scaled(layers),
        )

        def loss_of(batch: InputBatch, weight: Factors, bias: Factors) -> Tensor:
            scaled.weight, scaled.bias = weight, bias
            entropy = cross_entropy(losses.answers(batch), len(batch))
            return entropy.losses.sum() / max(1, int(entropy.known.sum()))

        def total(batch: InputBatch) -> Tensor:
            d, e = ({name: self._random(m, draw) for name, m in masks.items()} for _ in "de")
            worst = loss_of(batch, *_shaken(masks, d, e))
            slopes = torch.autograd.grad(worst, [*d.values(), *e.values()], allow_unused=True)
            for one, slope in zip([*d.values(), *e.values()], slopes, strict=True):
                if slope is not None:
                    one.data.add_(self.eps * slope.sign()).clamp_(-self.eps, self.eps)
            fixed = [{k: v.detach() for k, v in x.items()} for x in (d, e)]
            plain = self.alpha * loss_of(batch, masks, {})
            return plain + (1 - self.alpha) * loss_of(batch, *_shaken(masks, *fixed))

        def after(_: InputBatch) -> None:
            for mask in masks.values():
                mask.data.clamp_(0.0, 1.0)
            bar.advance(1)

        with (
            Bar("adversarial masks", self.steps) as bar,
            editing(model, scaled, list(layers), here=True),
        ):
            descent.run(total, (batches.next(draw) for _ in range(self.steps)), after)
        return {name: mask.detach() for name, mask in masks.items()}

    def _random(self, like: Tensor, draw: torch.Generator) -> Tensor:
        return ((2 * torch.rand(like.shape, generator=draw) - 1) * self.eps).requires_grad_()


def _shaken(masks: Factors, d: Factors, e: Factors) -> tuple[Factors, Factors]:
    """Return the factors of weights and biases after a change."""
    return {name: m + d[name] for name, m in masks.items()}, {k: 1 + v for k, v in e.items()}
