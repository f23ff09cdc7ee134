"""Sublayers: modules whose outputs a block adds to its stream one after another.

A pre-norm transformer block returns its input plus the outputs of its attention and its MLP. These
modules are found in one forward pass, by values and not by names: the stream plus the output of a
sublayer is the input of a later module, or the output of the block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, permutations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.watch import watch


@dataclass(frozen=True)
class Sublayers:
    """Modules whose outputs a block adds to its input, in order, or a reason for none.

    Parameters
    ----------
    names : tuple of str
    why : str
        Why the block is not its input plus outputs of modules; empty if it is.
    """

    names: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class _Event:
    """The input or the output of a module."""

    name: str
    port: str
    rows: Float[Tensor, "row dim"]


def sublayers_of(
    module: nn.Module, batch: InputBatch, path: str, kept: Bool[Tensor, "example pos"]
) -> Sublayers:
    """Return the sublayers of the block ``path``, found on the ``kept`` tokens of one batch."""
    block, events = _events(module, batch, path, kept)
    if len(block) < 2:
        return Sublayers(why=f"{path} changes the shape of the stream")
    stream, out, names = block["in"], block["out"], list[str]()
    modules = ModuleNames(module).modules
    outputs = [(i, e) for i, e in enumerate(events) if e.port == "out"]
    outputs.sort(key=lambda one: _rank(one[1].name, modules[one[1].name]))
    at = -1
    while True:
        later = [(i, e) for i, e in outputs if i > at]
        read = next((one for one in later if _is_read(events[one[0] :], stream, one[1])), None)
        last = next((e for _, e in later if is_sum(out, stream, e.rows)), None)
        if read is None and last is None:
            return Sublayers(why=_reason(module, path, block, [e for _, e in outputs]))
        if read is None and last is not None:
            return Sublayers((*names, last.name))
        assert read is not None
        at, event = read
        names.append(event.name)
        stream = stream + event.rows


def is_sum(total: Tensor, *terms: Tensor) -> bool:
    """Return whether a tensor is exactly the sum of others, added in this order.

    A tolerance would not do: if the stream is small, the output of a norm in bfloat16 is within a
    few roundings of that output plus the stream.
    """
    return torch.equal(total, reduce(torch.add, terms).to(total.dtype))


def _rank(name: str, module: nn.Module) -> tuple[bool, int]:
    """Return a sort key: attention before its last linear layer, dropout after both."""
    return not any(True for _ in module.parameters()), name.count(".")


def _is_read(later: Sequence[_Event], stream: Tensor, added: _Event) -> bool:
    return any(e.port == "in" and is_sum(e.rows, stream, added.rows) for e in later)


def _events(
    module: nn.Module, batch: InputBatch, path: str, kept: Bool[Tensor, "example pos"]
) -> tuple[dict[str, Tensor], list[_Event]]:
    """Return the inputs and outputs of a block and its modules, in order of execution.

    The outputs of modules that run several times are left out: a sublayer runs once.
    """
    inside = [n for n, _ in ModuleNames(module).primary() if n == path or n.startswith(f"{path}.")]
    sites = [Site(n, port=port) for n in inside for port in ("in", "out")]
    again = [Site(n, call=1) for n in inside]
    seen = watch(module, batch, [*sites, *again]).tensors
    shape = seen[str(Site(path))].shape
    repeated = {site.path for site in again if seen.pop(str(site), None) is not None}
    at = {str(site): site for site in sites}
    events = [
        _Event(at[text].path, at[text].port, x.cpu().reshape(*kept.shape, -1)[kept])
        for text, x in seen.items()
        if x.numel() == shape.numel() and x.shape[-1] == shape[-1]
        if at[text].port == "in" or at[text].path not in repeated
    ]
    block = {e.port: e.rows for e in events if e.name == path}
    return block, [e for e in events if e.name != path]


def _reason(module: nn.Module, path: str, block: dict[str, Tensor], made: Sequence[_Event]) -> str:
    """Return why a block's output is not its input plus the sublayers in turn."""
    same = [e.name for e in made if torch.equal(e.rows, block["out"])]
    if same:
        kind = type(ModuleNames(module).modules[same[-1]]).__name__
        return f"{path} ends in {same[-1]} ({kind}), as a post-norm block does"
    for a, b in combinations(made, 2):
        orders = permutations((block["in"], a.rows, b.rows))
        if any(is_sum(block["out"], *terms) for terms in orders):
            return f"{path} is parallel: no module reads its input plus {a.name} or plus {b.name}"
    return f"{path} is not the sum of its input and the outputs of its modules"
