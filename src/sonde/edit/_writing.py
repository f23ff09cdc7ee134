"""Writing of facts into layers, one layer after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.edit._facts import Fact, FactTexts, Search, log_probability, prompts, read_means
from sonde.edit._linear import linear_layer
from sonde.stats.normal_equations import GRAM_CUT
from sonde.tap import resolve
from sonde.weights import AtSites, Change, LowRank, RewritePlan

How = Literal["least_squares", "equal", "null_space"]


@dataclass(frozen=True)
class Writing:
    """Facts, the layers that should store them, and the measure of the least change.

    Parameters
    ----------
    model : Model
    facts, kept : sequence of Fact
        Facts to write, and facts written before.
    layers : sequence of str
        Linear layers, in order of execution.
    place : str
        Module after which the states are shifted.
    how : {"least_squares", "equal", "null_space"}
    weight : float
        Weight of all other text, divided by the width of the layer's input.
    prefixes : sequence of str
    """

    model: Model
    facts: Sequence[Fact]
    kept: Sequence[Fact]
    layers: Sequence[str]
    place: str
    how: How
    weight: float
    prefixes: Sequence[str]

    def plan(
        self, method: str, read: AtSites, search: Search, shifts: Float[Tensor, "fact dim"] | None
    ) -> RewritePlan:
        """Return the changes of all layers, from given shifts or from a search."""
        module = self.model.module
        answers = [read.at(f"{layer}:in") for layer in self.layers]
        keys, state = self._read(module, self.layers[0])
        figures: dict[str, float] = {}
        if shifts is None:
            shifts, before, searched = search.shifts(
                self.model, self.facts, self.prefixes, self.place, state
            )
            figures = {"nats_before": float(before.mean()), "nats_searched": float(searched.mean())}
        elif shifts.shape != state.shape:
            raise ShapeError(
                f"BatchEdit: expected shifts of shape {tuple(state.shape)}, got "
                f"{tuple(shifts.shape)}. Give one for each fact, as wide as {self.place}."
            )
        goal, changes = state + shifts.to(state), dict[str, Change]()
        for i, layer in enumerate(self.layers):
            if i:
                keys, state = self._read(module, layer)
            residual = (goal - state) / (len(self.layers) - i)
            change = self._update(module, layer, residual, keys, answers[i])
            missed = (keys @ change.right.T @ change.left.T - residual).norm(dim=1)
            worst = float((missed / residual.norm(dim=1).clamp(min=1e-300)).max())
            figures["missed"] = max(worst, figures.get("missed", 0.0))
            part = linear_layer(method.partition("(")[0], module, layer)
            named = {part.weight: part.plus(change.left, change.right)}
            module = RewritePlan.of(module, named).fold(module)
            changes |= named
        if "nats_searched" in figures:
            log_p = log_probability(replace(self.model, module=module), self.facts, self.prefixes)
            figures["nats_after"] = float(log_p.mean())
        return RewritePlan.of(self.model, changes, method, **figures)

    def _read(self, module: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        texts = prompts(self.model, self.facts, self.prefixes)
        keys, state = read_means(module, texts, [f"{layer}:in", f"{self.place}:out"])
        return keys, state

    def _update(
        self, module: nn.Module, layer: str, residual: Tensor, keys: Tensor, answer: Any
    ) -> LowRank:
        """Return the update of a layer; facts to keep have a residual of 0."""
        every, wanted = keys.T, residual.T
        if self.kept:
            texts: FactTexts = prompts(self.model, self.kept, self.prefixes)
            old = read_means(module, texts, [f"{layer}:in"])[0].T
            every = torch.cat([every, old], 1)
            wanted = torch.cat([wanted, wanted.new_zeros(len(wanted), old.shape[1])], 1)
        if self.how == "null_space":
            reach = answer.project(every)
            return least_update(wanted, every, reach, 1.0)
        reach = answer.solve(every)
        weight = self.weight * len(every) if self.how == "least_squares" else 0.0
        return least_update(wanted, every, reach, weight)


def linear_paths(owner: str, model: Model, layers: Sequence[str]) -> tuple[Model, list[str]]:
    """Return the model and the paths of its linear layers.

    Raises
    ------
    InputError
        If the model has no tokenizer, or a layer is not linear.
    """
    if model.processor is None:
        raise InputError(
            f"{owner}.plan: expected a causal language model with its tokenizer, got a bare "
            "module. Load it with sonde.load, or write sonde.Model(module, tokenizer, "
            "task='causal')."
        )
    paths = [site.path for site in resolve(model.module, list(layers))]
    for path in paths:
        linear_layer(owner, model.module, path)
    return model, paths


def block_around(module: nn.Module, layer: str) -> str:
    """Return the block that contains a layer, or the layer itself."""
    blocks = [site.path for site in resolve(module, "blocks")]
    return next((block for block in blocks if layer.startswith(f"{block}.")), layer)


def least_update(
    residual: Float[Tensor, "out key"],
    keys: Float[Tensor, "dim key"],
    reach: Float[Tensor, "dim key"],
    weight: float = 0.0,
) -> LowRank:
    """Return ``D = R (weight I + K^T M K)^-1 K^T M`` with ``M K`` given as ``reach``.

    With ``M = C^-1``, ``D`` minimises ``|D K - R|^2 + weight tr(D C D^T)``; at weight 0 it
    minimises ``tr(D C D^T)`` under ``D K = R``. With ``M`` a projector, ``D`` minimises ``|D K -
    R|^2 + weight |D|^2`` among updates in its range.

    Parameters
    ----------
    residual : Float[Tensor, "out key"]
        By how much the output of each key is to change; 0 for an output that must stay.
    keys, reach : Float[Tensor, "dim key"]
    weight : float, default=0.0
    """
    gram = keys.T @ reach
    inner = gram + weight * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    left = torch.linalg.lstsq(inner.T, residual.T, rcond=GRAM_CUT, driver="gelsd").solution.T
    return LowRank(left, reach.T)
