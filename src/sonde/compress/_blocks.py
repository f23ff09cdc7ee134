"""The list of blocks through which a model's states pass, and the arguments of their calls."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress.grams import without_padding
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap import place_of, probe, resolve
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session


@dataclass(frozen=True, eq=False)
class Blocks:
    """A model's list of blocks, in its order.

    Parameters
    ----------
    name : str
        Of the list.
    modules : tuple of nn.Module
    """

    name: str
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, owner: str, model: Model, inputs: Inputs) -> "Blocks":
        """Return the longest list of blocks of a model, found by running it on the first example.

        Raises
        ------
        InputError
            If the model has no list of blocks.
        """
        try:
            seen = probe(model, next(iter(inputs.batches(0, 1))))
            paths = [site.path for site in resolve(model.module, "blocks", seen)]
        except SiteError:
            paths = []
        above = [path.rpartition(".")[0] for path in paths]
        lists = {name: model.module.get_submodule(name) for name in above if name}
        candidates = {name: tuple(part) for name, part in lists.items()
                 if isinstance(part, nn.ModuleList | nn.Sequential)}  # fmt: skip
        if not candidates:
            raise InputError(
                f"{owner}.plan: expected a model with a list of blocks, got "
                f"{type(model.module).__name__}. Use a method that changes single layers."
            )
        name = max(candidates, key=lambda name: len(candidates[name]))
        return cls(name, candidates[name])


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One call of a block.

    Parameters
    ----------
    x, y : Tensor
        The states that the block read, and the states that it returned.
    args, kwargs
        Arguments of the call.
    output : object
    """

    x: Tensor
    y: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def block_calls(
    owner: str, model: Model, blocks: Blocks, batch: InputBatch
) -> dict[nn.Module, BlockCall]:
    """Return each block's call in one forward pass without gradients.

    Raises
    ------
    InputError
        If a block does not run exactly once, or does not read and return states.
    """
    calls_of: dict[nn.Module, list[BlockCall | None]] = {block: [] for block in blocks.modules}

    def around(
        block: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        x = find((args, kwargs), None)
        x = None if x is None else x.clone()  # a block may write into what it reads
        output = forward(*args, **kwargs)
        y = find(output, None)
        call = None
        if x is not None and y is not None:
            call = BlockCall(x, y.clone(), args, kwargs, output)
        calls_of[block].append(call)
        return output

    args, kwargs = placed_call(model, batch)
    with Session(model.module), intercepted(blocks.modules, around), torch.no_grad():
        model.module(*args, **kwargs)
    calls: dict[nn.Module, BlockCall] = {}
    for i, (block, several) in enumerate(calls_of.items()):
        one = several[0] if len(several) == 1 else None
        if one is None:
            raise InputError(
                f"{owner}.plan: expected blocks that run once and return states, got "
                f"{len(several)} calls of {blocks.name}.{i}. Use a method that changes single "
                "layers."
            )
        calls[block] = one
    return calls


def placed_call(model: Model, batch: InputBatch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a model's call, with the cache off so that calls can be repeated."""
    args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
    takes = inspect.signature(model.module.forward).parameters
    return args, {**kwargs, **({"use_cache": False} if "use_cache" in takes else {})}


def state_rows(x: Tensor, batch: InputBatch) -> Float[Tensor, "row dim"]:
    """Return states as rows in float64, without padding; maps give a row for each position."""
    x = without_padding(x, batch)
    x = x.movedim(1, -1) if x.ndim == 4 else x
    return x.reshape(-1, x.shape[-1]).double()


def same_shape(calls: Sequence[BlockCall]) -> bool:
    """Return whether all blocks return states of the first block's input shape."""
    return all(call.y.shape == calls[0].x.shape for call in calls)
