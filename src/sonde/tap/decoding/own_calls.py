"""Data of a generating model's calls for a rule: masks, states, and assisted decoding."""

import contextvars
import threading
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sonde.core.errors import InputError
from sonde.tap.decoding.last_states import LastStates
from sonde.tap.hooks.cache import cache_in
from sonde.tap.hooks.call import CallArguments

ASIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("sonde_aside", default=False)
"""Set while a rule runs models itself: such calls are none of the generation."""


class OwnCalls(threading.local):
    """The calls of a model in this thread since a rule's last step.

    Parameters
    ----------
    root : nn.Module
    states : LastStates
    """

    def __init__(self, root: nn.Module, states: LastStates) -> None:
        self._root, self._states = root, states
        self._cache: Any = None
        self._is_new = True
        self._real = torch.empty(0, 0, dtype=torch.bool)
        self._parts: list[Tensor] = []

    def hooked(self) -> list[RemovableHandle]:
        """Register the hooks and return the handles that remove them."""
        hook = self._root.register_forward_pre_hook(self._before, with_kwargs=True)
        return [hook, *self._states.hooked()]

    def take(
        self, ids: Int[Tensor, "row pos"]
    ) -> tuple[Bool[Tensor, "row pos"], dict[str, Tensor], bool]:
        """Return the mask of real tokens, the states, and whether a generation begins here.

        Raises
        ------
        InputError
            If the model did not just read the texts up to these ids.
        """
        before, new = self._real, self._parts
        parts = new if self._is_new else [before, *new]
        width = sum(part.shape[1] for part in parts)
        if not new or width != ids.shape[1] or any(len(part) != len(ids) for part in parts):
            self._parts, self._is_new = [], True
            raise InputError(
                "Decode: expected the model to read each token once before the rule chooses "
                "the next token. Assisted decoding, prompt lookup and inputs_embeds do not: "
                "leave out assistant_model and prompt_lookup_num_tokens, and pass input_ids."
            )
        begins = width != before.shape[1] + 1 or (self._is_new and self._cache is not None)
        self._real, self._parts, self._is_new = torch.cat(parts, dim=1), [], False
        return self._real.to(ids.device), self._states.take(), begins

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if ASIDE.get():
            return
        call = CallArguments(self._root, args, kwargs)
        if call.fed is None or call.fed.ndim != 2:
            return
        (n_rows, fed), past, mask = call.fed.shape, call.past, call.mask
        real = torch.ones(n_rows, past + fed, dtype=torch.bool, device=call.fed.device)
        if mask is not None and mask.shape[1] in (fed, past + fed):
            real[:, past + fed - mask.shape[1] :] = mask
        cache = cache_in(call.named)
        made_here = self._cache is None and past > 0 and not (self._is_new or self._parts)
        is_new = cache is None or not (cache is self._cache or made_here)
        self._cache = cache
        if is_new:
            self._is_new, self._parts = True, []
        self._parts.append(real if is_new else real[:, past:])
