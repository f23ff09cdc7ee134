"""Outputs taken while a model generates, put together to what one forward over it all would give.

Every call of the model is one stretch of positions: the prompts, then one token at a time. The ids
that the model was given are recorded beside the outputs; what does not spell the sequences is
thrown away.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.tap._choose import Kind
from sonde.tap._hooks import Session
from sonde.tap._vary import placement
from sonde.tap.outputs import find

if TYPE_CHECKING:
    from sonde.tap.replay import ReplayInputs

MOST_BYTES = 2**30
REDUCERS = ("mean", "last", "cls", "tokens")


@dataclass(frozen=True)
class Spot:
    """An output of a module: its first floating-point tensor, or the one named ``key``."""

    module: nn.Module
    key: str | None


class Recorder:
    """Keeps the outputs of some modules, call by call.

    Parameters
    ----------
    root : nn.Module
    spots : mapping of name to Spot
    """

    def __init__(self, root: nn.Module, spots: Mapping[str, Spot]) -> None:
        self.root = root
        self.taken: dict[str, list[Tensor]] = {name: [] for name in spots}
        self.ids: list[Tensor] = []
        self.session = Session(
            root,
            outputs=[(s.module, partial(self._take, name, s.key)) for name, s in spots.items()],
            inputs=[(root, self._take_ids)],
        )

    def _take(self, name: str, key: str | None, output: Any) -> None:
        leaf = find(output, key)
        if leaf is not None:
            self.taken[name].append(leaf.detach().clone())

    def _take_ids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if isinstance(ids, Tensor):
            self.ids.append(ids.detach().clone())

    def last_token(self, sequences: Tensor, mask: Tensor, cache: Any) -> None:
        """Run the model on the last token, which generation has not, with the cache it left."""
        device, _ = placement(self.root)
        seen = torch.ones_like(mask)
        first = mask.argmax(dim=1, keepdim=True)
        seen[torch.arange(mask.shape[1]) < first] = 0
        kwargs: dict[str, Any] = {
            "input_ids": sequences[:, -1:].to(device),
            "attention_mask": seen.to(device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in inspect.signature(self.root.forward).parameters:
            kwargs["position_ids"] = (seen.sum(dim=1, keepdim=True) - 1).to(device)
        with self.session:
            self.session.run((), kwargs)

    def outputs(self, sequences: Tensor) -> dict[str, Tensor] | None:
        """Return (example, pos, dim) of every spot, or None where calls do not spell sequences."""
        shape = sequences.shape
        if not self.ids or any(len(ids) != shape[0] for ids in self.ids):
            return None
        if not torch.equal(torch.cat(self.ids, dim=1).cpu(), sequences):
            return None
        joined: dict[str, Tensor] = {}
        for name, parts in self.taken.items():
            if any(p.ndim != 3 or len(p) != shape[0] for p in parts):
                return None
            joined[name] = torch.cat(parts, dim=1) if parts else torch.empty(0, 0, 0)
            if joined[name].shape[:2] != shape:
                return None
        return joined


def may_record(inputs: "ReplayInputs", prompts: InputBatch, kinds: Sequence[Kind]) -> bool:
    """Return whether rows of these kinds can be taken while a batch is generated from.

    They can where rows follow from the outputs position by position, stay in their place, and all
    outputs together take at most 1 GiB.
    """
    if inputs.new_tokens is None or not inputs.keeps_rows_in_place:
        return False
    n_tokens = len(prompts) * (prompts.kwargs["input_ids"].shape[1] + inputs.new_tokens)
    size = sum(k.schema.dim * getattr(torch, k.schema.dtype).itemsize for k in kinds)
    return n_tokens * size <= MOST_BYTES and all(map(_is_plain, kinds))


def _is_plain(kind: Kind) -> bool:
    is_output = kind.site.port == "out" and kind.site.call is None
    reduction = kind.reduction
    in_order = reduction.axes.words == ("row", "pos", "dim")
    return is_output and in_order and reduction.reducer.name in REDUCERS
