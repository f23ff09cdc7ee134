"""Train with most weights at zero from the start, and change the zero weights over time.

For small models and for clients that send few numbers. Masks act after each step of the optimiser;
the model stays an ordinary model.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed


@final
class Masks:
    """The masks inside a ``SparseTraining`` block; ``active`` is True for used weights."""

    def __init__(self, active: dict[str, Tensor]) -> None:
        self.active, self.n_steps = active, 0

    @property
    def density(self) -> float:
        """Fraction of active weights over all masked layers."""
        each = self.active.values()
        return sum(int(m.sum()) for m in each) / sum(m.numel() for m in each)


@renamed(remove="prune_share")
@final
@dataclass(frozen=True)
class SparseTraining:
    """Keep a fraction of each layer's weights active, and regularly exchange some of them.

    Every ``period`` steps a share of the active weights, from ``remove`` down to 0 by a cosine
    over ``steps``, is exchanged for as many that were not active. ``gradient``: the smallest
    weights go, the weights with the largest gradients come. ``magnitude``: the smallest go, random
    weights come. ``random``: random weights go and come. ``congruity``: weights go if their
    gradient disagrees most with the given direction, and come if it agrees most.

    Range        the number of active weights of a layer never changes.
    Cost         one product a step; a sort of each layer every ``period`` steps.
    Assumes      gradients of the last batch are still there after ``optimiser.step()``.
    Differs      from the paper of congruity: the exact scores are ours.

    Parameters
    ----------
    density : float, default=0.1
        Fraction of the weights that is active, in (0, 1], over all layers.
    score : {"gradient", "magnitude", "random", "congruity"}, default="gradient"
        Score by which inactive weights are chosen for activation.
    fixed : bool, default=False
        Whether the first choice of active weights stays.
    period : int, default=100
        Number of steps between two exchanges.
    remove : float, default=0.3
        Fraction of the active weights that the first exchange removes, in [0, 1]; it falls to 0
        by a cosine.
    steps : int, default=10000
        Number of steps until no weights are exchanged.
    allocation : {"uniform", "erdos_renyi"}, default="uniform"
        "erdos_renyi" makes small layers denser: the density is proportional to the sum of a
        weight's sizes divided by their product.
    seed : int, default=0
        Seed of the first choice of active weights and of random scores.

    References
    ----------
    evci2020rigl
    """

    density: float = 0.1
    score: Literal["gradient", "magnitude", "random", "congruity"] = "gradient"
    fixed: bool = False
    period: int = 100
    remove: float = 0.3
    steps: int = 10_000
    allocation: Literal["uniform", "erdos_renyi"] = "uniform"
    seed: int = 0
    paper: ClassVar[str] = "evci2020rigl"
    variants: ClassVar[dict[str, str]] = {"congruity": "tian2024fedsgc"}

    def __post_init__(self) -> None:
        check_ranges(self, allocation=("uniform", "erdos_renyi"))
        is_known = self.score in ("gradient", "magnitude", "random", "congruity")
        if not is_known or not 0 < self.density <= 1 or not 0 <= self.remove <= 1:
            raise InputError(
                "SparseTraining: expected a known score, density in (0, 1] and remove in "
                f"[0, 1], got {self.score!r}, {self.density}, {self.remove}."
            )

    @contextmanager
    def on(
        self,
        model: Model | nn.Module,
        optimiser: torch.optim.Optimizer,
        direction: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]] | None = None,
        active: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Masks]:
        """Keep the model sparse inside the block.

        Parameters
        ----------
        model : Model or nn.Module
            Weights that are not active become 0 at once.
        optimiser : Optimizer
        direction : mapping of str to Tensor, or callable, optional
            Gradient over all clients, by parameter, for "congruity". A callable is asked at each
            exchange, so that every round can have a direction of its own.
        active : mapping of str to Tensor, optional
            Masks to begin with, by parameter, such as those that a server sent; by default random
            ones. Each keeps its number of active weights.

        Raises
        ------
        InputError
            If the direction is missing, the model has no matrix, or the masks are of other weights.
        """
        module = model.module if isinstance(model, Model) else model
        weights = {n: p for n, p in module.named_parameters() if p.ndim >= 2}
        if not weights or (self.score == "congruity" and direction is None):
            raise InputError(
                "SparseTraining.on: expected a model with weights of at least two axes, and "
                "direction= together with score='congruity'."
            )
        draw = torch.Generator().manual_seed(self.seed)
        masks = Masks(self._drawn(weights, draw) if active is None else _given(weights, active))

        @torch.no_grad()
        def after(*_: Any) -> None:
            masks.n_steps += 1
            if not self.fixed and masks.n_steps % self.period == 0:
                given = direction() if callable(direction) else direction or {}
                for name, p in weights.items():
                    masks.active[name] = self._moved(p, masks, name, given.get(name), draw)
            _apply(weights, masks)

        with torch.no_grad():
            _apply(weights, masks)
        handle = optimiser.register_step_post_hook(after)
        try:
            yield masks
        finally:
            handle.remove()

    def _drawn(self, weights: dict[str, nn.Parameter], draw: torch.Generator) -> dict[str, Tensor]:
        """Create the initial random masks."""
        share = self.shares({name: tuple(p.shape) for name, p in weights.items()})
        active = {}
        for name, p in weights.items():
            n = max(1, round(share[name] * p.numel()))
            order = torch.rand(p.numel(), generator=draw).argsort()
            mask = torch.zeros(p.numel(), dtype=torch.bool)
            mask[order[:n]] = True
            active[name] = mask.reshape(p.shape).to(p.device)
        return active

    def shares(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """Return the density of each layer; over all layers, the density is ``density``."""
        if self.allocation == "uniform":
            return dict.fromkeys(shapes, self.density)
        full: set[str] = set()
        while True:
            rest = {n: s for n, s in shapes.items() if n not in full}
            size = {n: math.prod(s) for n, s in shapes.items()}
            wanted = self.density * sum(size.values()) - sum(size[n] for n in full)
            scale = wanted / max(sum(sum(s) for s in rest.values()), 1)
            share = {n: scale * sum(s) / size[n] for n, s in rest.items()}
            over = {n for n, one in share.items() if one > 1}
            if not over:
                return {n: 1.0 if n in full else share[n] for n in shapes}
            full |= over

    def _moved(
        self,
        p: nn.Parameter,
        masks: Masks,
        name: str,
        direction: Tensor | None,
        draw: torch.Generator,
    ) -> Tensor:
        """Return the mask of a layer with some weights exchanged."""
        mask, progress = masks.active[name], min(masks.n_steps / self.steps, 1.0)
        share = self.remove * (1 + math.cos(math.pi * progress)) / 2
        n = min(round(share * int(mask.sum())), int((~mask).sum()))
        slope = torch.zeros_like(p) if p.grad is None else p.grad
        chance = torch.rand(p.shape, generator=draw).to(p)
        agree = slope * (slope if direction is None else direction.to(p))
        keep = {
            "gradient": p.abs(),
            "magnitude": p.abs(),
            "random": chance,
            "congruity": agree,
        }[self.score]
        grow = {"gradient": slope.abs(), "congruity": agree}.get(self.score, chance)
        gone = keep.masked_fill(~mask, torch.inf).flatten().argsort(stable=True)[:n]
        come = grow.masked_fill(mask, -torch.inf).flatten().argsort(descending=True, stable=True)
        new = mask.flatten().clone()
        new[gone], new[come[:n]] = False, True
        return new.reshape(mask.shape)


def _given(weights: Mapping[str, nn.Parameter], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tuple(p.shape) for name, p in weights.items()}
    sizes = {name: tuple(mask.shape) for name, mask in active.items()}
    if shapes != sizes or any(mask.dtype != torch.bool for mask in active.values()):
        raise InputError(
            f"SparseTraining.on: expected active= with a mask of bool for each of {shapes}, got "
            f"{ {name: (shape, active[name].dtype) for name, shape in sizes.items()} }."
        )
    return {name: active[name].to(p.device).clone() for name, p in weights.items()}


def _apply(weights: dict[str, nn.Parameter], masks: Masks) -> None:
    for name, p in weights.items():
        p.masked_fill_(~masks.active[name], 0.0)
