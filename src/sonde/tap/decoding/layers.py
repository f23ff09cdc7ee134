"""Early layers of a causal model, decoded by its final norm and head."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.probe import Probe, probe
from sonde.tap.model.readout import Readout, head_module, modules_between, readout

TOKENS = 4


class ModelBlocks:
    """The blocks of one model, by index.

    Parameters
    ----------
    module : nn.Module
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @cached_property
    def paths(self) -> list[str]:
        """The blocks in order of execution."""
        return block_paths(ModuleNames(self._module), None)

    def site(self, layer: int) -> Site:
        """Return the output of a block."""
        n = len(self.paths)
        if not -n <= layer < n:
            raise SiteError(
                f"Decode: expected a layer in {-n}..{n - 1}, got {layer}: "
                f"{type(self._module).__name__} has {n} blocks."
            )
        return Site(self.paths[layer])

    @cached_property
    def _few_tokens(self) -> InputBatch:
        ids = torch.arange(1, TOKENS + 1)[None].expand(2, -1)
        return _batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    @cached_property
    def _probe(self) -> Probe:
        return probe(Model(self._module, task="causal"), self._few_tokens)

    @cached_property
    def _readout(self) -> Readout:
        """The layers after the last block, found and checked on a few tokens."""
        head, last, decode = head_module(self._probe), self.site(-1), None
        if head is not None:
            decode = readout(self._module, self._probe, head, last, self._few_tokens)
        if decode is None:
            raise SiteError(
                "Decode: applying only the final norm and head of "
                f"{type(self._module).__name__} after {last.path} does not give its logits, "
                "so the logits of earlier layers cannot be computed."
            )
        return decode

    @property
    def head(self) -> nn.Module:
        """The layer that gives the logits."""
        self.check()
        head = head_module(self._probe)
        assert head is not None  # read out a moment ago
        return head

    @property
    def between(self) -> list[nn.Module]:
        """Modules between the last block and the head, in order: the final norm."""
        return modules_between(self._probe, self.head, self.site(-1)) or []

    def decode(self, state: Float[Tensor, "row dim"]) -> Float[Tensor, "row token"]:
        """Return the logits that the model would give after a block, with autograd graph."""
        return self._readout(state)

    def check(self) -> None:
        """Raise if a model's early layers cannot be decoded."""
        assert self._readout is not None

    def logits(self, state: Float[Tensor, "row dim"]) -> Float[Tensor, "row token"]:
        """Return the logits that the model would give with these states after a block."""
        with torch.no_grad():
            return self._readout(state)


def _batch(kwargs: dict[str, Any]) -> InputBatch:
    n = len(kwargs["input_ids"])
    index, keys = torch.arange(n), [b""] * n
    return InputBatch(
        args=(),
        kwargs=kwargs,
        ids=[str(i) for i in range(n)],
        keys=keys,
        order=index,
        occurrence=torch.zeros_like(index),
        group_keys=keys,
        label=torch.full((n,), -1),
    )
