"""Synthesise a few images that represent a data set, from a model's answers and statistics.

For nets that classify images. The real images nearest to the centres of clusters are a strong
alternative: compare before you use these.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.engine.steps import Descent, seeded
from sonde.stats import MomentsState
from sonde.tap.hand.recording import intercepted
from sonde.tap.hooks.session import Session
from sonde.weights import module_of

FIRST = 10.0
"""Weight of the first layer's statistics, in parts of the others'."""


@final
@dataclass(frozen=True, eq=False)
class DistilledData:
    """Images that represent a data set.

    Parameters
    ----------
    x : Float[Tensor, "row *shape"]
        Images.
    label : Int[Tensor, "row"]
        Class of each image.
    probs : Float[Tensor, "row class"]
        The net's own answers to them: soft labels for a student.
    losses : tuple of float
        Loss of each step.
    """

    x: Float[Tensor, "row *shape"]
    label: Int[Tensor, "row"]
    probs: Float[Tensor, "row class"]
    losses: tuple[float, ...]


@final
@dataclass(frozen=True)
class DistillDataset:
    """Optimise noise until a model predicts the wanted classes, with the moments of real data.

    Each step crops all images at random, enlarges the crop, and lowers ``CE + weight sum_l |mean -
    mean_l| + |var - var_l|`` over the layers with known moments; the first layer counts ten times.
    The smallest crop falls from the whole image to ``crop`` over the first part of the steps, from
    easy to hard.

    Range        images in [``low``, ``high``].
    Cost         a forward and a backward of all images for each step.
    Assumes      a net in eval mode whose layers see their channels on the axis of their norm.
    Differs      from the paper: any layers' moments, not batch norms' alone; soft labels are those
                 of whole images; no flips.

    Parameters
    ----------
    steps : int, default=500
        Number of steps of Adam.
    rate : float, default=0.1
        Learning rate of Adam.
    weight : float, default=0.01
        Weight of the moments in the loss.
    crop : float, default=0.08
        Smallest share of an image's area that is seen; 1 takes whole images, and also inputs that
        are not images.
    ramp : float, default=0.8
        Share of the steps over which the smallest crop falls; 0 starts with it.
    schedule : {"cosine", "linear"}, default="cosine"
        Course of the learning rate.
    low : float
        Smallest value of a valid image.
    high : float
        Largest value of a valid image.
    seed : int, default=0
        Seed of the initial noise.

    References
    ----------
    yin2024cda
    """

    steps: int = 500
    rate: float = 0.1
    weight: float = 0.01
    crop: float = 0.08
    ramp: float = 0.8
    schedule: Literal["cosine", "linear"] = "cosine"
    low: float = 0.0
    high: float = 1.0
    seed: int = 0
    paper: ClassVar[str] = "yin2024cda"

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1", crop="(0, 1]", ramp="[0, 1]")
        check_ranges(self, schedule=("cosine", "linear"))
        if not self.low < self.high:
            raise InputError(
                f"DistillDataset: expected low below high, got {self.low:g} and {self.high:g}."
            )

    def distil(
        self,
        model: Model | nn.Module,
        moments: Mapping[str, MomentsState],
        label: Int[Tensor, "row"],
        shape: tuple[int, ...],
    ) -> DistilledData:
        """Return synthetic images of the given classes. ``model`` is not changed.

        Parameters
        ----------
        model : Model or nn.Module
            A classifier that returns logits, or an output with ``logits``.
        moments : mapping of str to MomentsState
            Of the inputs of layers over the real data, by ``layer:in`` or the layer's name:
            ``batch_norm_moments(model)``, or ``sonde.fit`` of ``Moments`` at these sites.
        label : Int[Tensor, "row"]
            The wanted class of each image.
        shape : tuple of int
            Of an image: (channel, high, wide).
        """
        module = module_of(model)
        named = dict(module.named_modules())
        wanted = {name.removesuffix(":in"): state for name, state in moments.items()}
        unknown = sorted(wanted.keys() - named.keys())
        if unknown or (self.crop < 1 and len(shape) != 3):
            raise InputError(
                "DistillDataset.distil: expected layers of the model, and images if crop is "
                f"below 1, got {unknown[:1]} and the shape {shape}."
            )
        layers = {named[name]: state for name, state in wanted.items()}
        with seeded(self.seed) as draw, Session(module):
            x = torch.randn(len(label), *shape, generator=draw) * (self.high - self.low) / 4
            x = (x + (self.high + self.low) / 2).clamp(self.low, self.high).requires_grad_()
            descent = Descent("DistillDataset", [x], self.rate, _adam)

            def loss(step: int) -> Tensor:
                seen = _cropped(x, self.smallest(step), draw) if self.crop < 1 else x
                logits, gaps = _run(module, seen, layers)
                parts = [g * (FIRST if i == 0 else 1.0) for i, g in enumerate(gaps)]
                return cross_entropy(logits, label) + self.weight * sum(parts)

            def clip(_: int) -> None:
                with torch.no_grad():
                    x.clamp_(self.low, self.high)

            losses = descent.run(loss, range(self.steps), clip)
            with torch.no_grad():
                probs = _run(module, x, {})[0].softmax(-1)
        return DistilledData(x.detach(), label, probs, losses)

    def smallest(self, step: int) -> float:
        """Return the smallest crop at a step, as a fraction of the area."""
        end = self.ramp * (self.steps - 1)
        gone = 1.0 if step >= end else step / end
        fall = (1 - math.cos(math.pi * gone)) / 2 if self.schedule == "cosine" else gone
        return 1.0 - (1.0 - self.crop) * fall


def batch_norm_moments(model: Model | nn.Module) -> dict[str, MomentsState]:
    """Return the input moments that a model's batch norms store, by the name of the norm.

    Parameters
    ----------
    model : Model | Module
        Model with batch norms.

    Raises
    ------
    InputError
        If there is no batch norm with running statistics.
    """
    moments: dict[str, MomentsState] = {}
    for name, part in module_of(model).named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            assert part.running_var is not None  # both are kept or none
            mean, variance = part.running_mean.double(), part.running_var.double()
            moments[name] = MomentsState(1, mean.clone(), variance.clone())
    if not moments:
        raise InputError(
            "batch_norm_moments: expected batch norms with running statistics, got none. Fit "
            "Moments('diag') at inputs of layers instead."
        )
    return moments


def moment_gap(x: Float[Tensor, "row *axes"], state: MomentsState) -> Float[Tensor, ""]:
    """Return ``|mean - mean_l| + |var - var_l|`` of the channels of a layer's input.

    Channels are the second axis of maps (row, channel, high, wide), else the last.
    """
    rows = x.movedim(1, -1).flatten(0, -2) if x.ndim == 4 else x.flatten(0, -2)
    if rows.shape[1] != len(state.mean):
        raise InputError(
            f"DistillDataset: expected moments of {rows.shape[1]} channels, got {len(state.mean)}."
        )
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    return (mean - state.mean.to(rows)).norm() + (variance - state.variance.to(rows)).norm()


def _run(
    module: nn.Module, x: Tensor, layers: Mapping[nn.Module, MomentsState]
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits, and the gap of the moments of each layer's input, in order."""
    gaps: list[Tensor] = []

    def around(part: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        gaps.append(moment_gap(given, layers[part]))
        return forward(*args, **kwargs)

    with intercepted(list(layers), around):
        out = module(x)
    return (out if isinstance(out, Tensor) else out.logits), gaps


def _cropped(
    x: Float[Tensor, "row channel high wide"], smallest: float, draw: torch.Generator
) -> Float[Tensor, "row channel high wide"]:
    """Return a random crop of all images, resized to their original size."""
    high, wide = x.shape[2:]
    u = torch.rand(4, generator=draw).tolist()
    area = smallest + (1.0 - smallest) * u[0]
    aspect = math.exp((2 * u[1] - 1) * math.log(4 / 3))
    n_high = min(high, max(1, round(high * math.sqrt(area / aspect))))
    n_wide = min(wide, max(1, round(wide * math.sqrt(area * aspect))))
    top, left = int(u[2] * (high - n_high + 1)), int(u[3] * (wide - n_wide + 1))
    part = x[:, :, top : top + n_high, left : left + n_wide]
    return interpolate(part, (high, wide), mode="bilinear", align_corners=False)


def _adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr, betas=(0.5, 0.9))
