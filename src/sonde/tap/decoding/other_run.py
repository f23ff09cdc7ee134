"""A causal model with its own cache that reads the texts of a generation."""

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.tap.decoding.last_states import LastStates
from sonde.tap.decoding.prompts import Rewording
from sonde.tap.hooks.cache import NAMES, cache_of
from sonde.tap.hooks.holding import TRAINING
from sonde.tap.model.placement import placement
from sonde.tap.model.probe import find_logits


class OtherRun:
    """One model reading texts with one kind of prompt.

    Parameters
    ----------
    module : nn.Module
        Runs in eval mode, and is handed back as it was.
    prompt : callable or None
        What it reads in place of the prompts.
    states : LastStates
        What is kept of each call.

    Attributes
    ----------
    logits : Float[Tensor, "row token"]
        Of the next token, after the last call.
    """

    def __init__(self, module: nn.Module, prompt: Rewording | None, states: LastStates) -> None:
        self._module, self._prompt, self._states = module, prompt, states
        self._modules = list(module.modules())
        self._device, _ = placement(module)
        self._takes = frozenset(inspect.signature(module.forward).parameters)
        if "input_ids" not in self._takes:
            raise InputError(
                f"Decode: expected a causal language model, got {type(module).__name__}, whose "
                "forward takes no input_ids."
            )
        self._cache: Any = None
        self._ids = self._mask = self.logits = torch.empty(0)
        self.kept: dict[str, Tensor] = {}

    def begin(self, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> None:
        """Read whole texts, or the texts with their prompts replaced."""
        ids, mask = ids.to(self._device), mask.to(self._device)
        if self._prompt is not None:
            ids, mask = self._prompt(ids, mask, self._whole)
            if ids.shape != mask.shape or ids.ndim != 2:
                raise InputError(
                    f"Decode: expected ids and mask (row, pos) of other prompts, got "
                    f"{tuple(ids.shape)} and {tuple(mask.shape)}."
                )
        self._ids, self._mask, self._cache = ids, mask, None
        self._forward()

    def origin(self) -> Int[Tensor, "row"]:
        """Return a number for each row, equal for rows that began with equal texts."""
        text = self._ids.masked_fill(~self._mask, -1)
        return torch.unique(text, dim=0, return_inverse=True)[1]

    def go_on(self, last: Int[Tensor, "row"], parent: Int[Tensor, "row"] | None) -> None:
        """Read one more token per text; row i continues the earlier row ``parent[i]``."""
        if parent is not None:
            parent = parent.to(self._device)
            self._ids, self._mask = self._ids[parent], self._mask[parent]
            if self._cache is not None:
                self._cache.reorder_cache(parent)
        last = last.to(self._ids)[:, None]
        self._ids = torch.cat((self._ids, last), dim=1)
        self._mask = torch.cat((self._mask, torch.ones_like(last, dtype=torch.bool)), dim=1)
        self._forward()

    def _forward(self) -> None:
        handles = self._states.hooked()
        try:
            output = self._call(self._ids, self._mask, cached=True)
        finally:
            for handle in handles:
                handle.remove()
        self.logits, self.kept = _last(output, self._module), self._states.take()

    def _whole(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "row token"]:
        return _last(self._call(ids, mask, cached=False), self._module).float()

    def _call(self, ids: Tensor, mask: Tensor, *, cached: bool) -> Any:
        """Run the model on the tokens that its cache lacks, and store the cache."""
        cache = self._cache if cached else None
        named: dict[str, Any] = {
            "attention_mask": mask.long(),
            "position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0),
            "use_cache": cached,
            "logits_to_keep": 1,
        }
        if cache is not None:
            named |= dict.fromkeys(NAMES, cache)
        named = {name: value for name, value in named.items() if name in self._takes}
        prepare: Any = getattr(self._module, "prepare_inputs_for_generation", None)
        if prepare is not None:
            is_first = cache is None
            n = None if is_first else 1
            named = prepare(ids, next_sequence_length=n, is_first_iteration=is_first, **named)
        else:
            named["input_ids"] = ids
        held = TRAINING.take(self._modules)
        try:
            with torch.no_grad():
                output = self._module(**named)
        finally:
            TRAINING.give(held)
        if cached:
            returned = cache_of(output)
            self._cache = returned if hasattr(returned, "reorder_cache") else None
        return output


def _last(output: Any, module: nn.Module) -> Float[Tensor, "row token"]:
    """Return the logits of the next token."""
    logits = find_logits(output)
    if logits is None or logits.ndim != 3:
        raise InputError(
            f"Decode: expected logits (row, token, vocabulary) of {type(module).__name__}, got "
            f"{'none' if logits is None else tuple(logits.shape)}. Name a causal language model."
        )
    return logits[:, -1]
