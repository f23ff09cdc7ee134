"""Fine-pruning: silence channels that clean examples hardly use, then fine-tune.

For convolutional classifiers and a few hundred clean images with labels. A trigger that shares its
channels with what clean images show survives.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.edit._channels import (
    MeanPassed,
    Scaled,
    accuracy,
    accuracy_of,
    channel_layers,
    labelled,
    silenced,
)
from sonde.tap import editing
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde.weights.tuning import (
    each_batch,
    mean_loss,
    plan_of,
    row_losses,
    tuned,
    with_copy,
)

MOST_STEPS = 64


@final
@dataclass(frozen=True)
class FinePrune(Rewrite):
    """Silence a layer's least active channels while clean accuracy allows, then train further.

    Channels go in the order of their mean of ``max(x, 0)`` over clean images, smallest first, until
    the accuracy on these images would fall by more than ``budget``. Then all weights are trained on
    the clean images, silenced channels staying silent.

    Range        any weight may change; silenced channels are 0.
    Cost         a pass over the clean data for each step of silencing, which takes 1/64 of the
                 channels, at least one; then ``epochs`` passes of training.
    Assumes      a ReLU behind the layer; images that are really clean.

    Parameters
    ----------
    layer : str, optional
        Name of a convolution, or of the batch norm behind one; the last by default.
    budget : float, default=0.03
        Accuracy that may be lost by silencing.
    rate : float, default=1e-3
        Learning rate of Adam.
    epochs : int, default=10
        0 prunes without training.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    liu2018finepruning
    """

    layer: str | None = None
    budget: float = 0.03
    rate: float = 1e-3
    epochs: int = 10
    seed: int = 0
    paper: ClassVar[str] = "liu2018finepruning"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"epochs": 1},)

    def __post_init__(self) -> None:
        check_ranges(self, rate="> 0", budget="[0, 1)")

    def reads(self) -> dict[str, Examples]:
        """Read clean examples with labels."""
        return {"clean": Examples()}

    def planned(self, model: Model, clean: Inputs) -> RewritePlan:
        """Return the changes that silence channels, and the trained weights."""
        labelled("FinePrune", clean)
        every = channel_layers("FinePrune", model.module, self.layer)
        name = list(every)[-1]
        layers = {name: every[name]}
        order = mean_passed(model, clean, name).argsort(stable=True)
        before = accuracy(model, model.module, clean)
        gone = self._silent(model, clean, layers, order, before - self.budget)
        new = _folded(model, layers, {name: gone})
        if self.epochs:
            open_channels = Scaled(layers, {name: (~gone).float()}, {name: (~gone).float()})
            with editing(new, open_channels, name, here=True):
                tuned(
                    model,
                    clean,
                    mean_loss,
                    rate=self.rate,
                    epochs=self.epochs,
                    seed=self.seed,
                    label="fine-tune",
                    start=new,
                )
            new = _folded(Model(new), layers, {name: gone})
        return plan_of(
            model,
            new,
            f"fine_prune(layer={name}, budget={self.budget:g})",
            n_silenced=float(gone.sum()),
            n_channels=float(len(gone)),
            accuracy_before=before,
            accuracy_after=accuracy(model, new, clean),
        )

    @torch.no_grad()
    def _silent(
        self, model: Model, clean: Inputs, layers: dict[str, Any], order: Tensor, least: float
    ) -> Tensor:
        """Return a mask of the channels that can be silenced."""
        ((name, _),) = layers.items()
        losses, at_once = row_losses(model, model.module, clean), max(1, len(order) // MOST_STEPS)
        gone = torch.zeros(len(order), dtype=torch.bool)
        for n in range(at_once, len(order), at_once):
            tried = torch.zeros_like(gone)
            tried[order[:n]] = True
            kept = {name: (~tried).float()}
            with editing(model, Scaled(layers, kept, kept), name, here=True):
                if accuracy_of(losses, each_batch(clean)) < least:
                    break
            gone = tried
        return gone


@torch.no_grad()
def mean_passed(model: Model, clean: Inputs, layer: str) -> Tensor:
    """Return the mean of ``max(x, 0)`` of each channel of a layer over images and positions."""
    watch, losses = MeanPassed(), row_losses(model, model.module, clean)
    with editing(model, watch, layer, here=True):
        for batch in each_batch(clean):
            losses.answers(batch)
    assert watch.total is not None  # a batch has been read
    return (watch.total / watch.n).cpu()


def _folded(model: Model, layers: dict[str, Any], which: dict[str, Tensor]) -> nn.Module:
    """Return a copy with some channels silenced, and all of its weights trainable."""
    return with_copy(RewritePlan.of(model, silenced(layers, which)).fold(model))
