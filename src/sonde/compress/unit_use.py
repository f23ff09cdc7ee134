"""Frequency with which each hidden unit of dense blocks is among the most active.

A unit counts by what it writes: its activation times the length of its output weights. States of
shards are merged by addition. Rows of padding are left out.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.compress.grams import without_padding
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Inputs, Model
from sonde.core.state import State
from sonde.engine.progress import Bar
from sonde.tap import calls_of, difference_of_models, model_record, place_of
from sonde.tap.rows.padding import right_padded
from sonde.weights import as_model


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """A block of one hidden layer: one or, if gated, two input maps, and the output map.

    Parameters
    ----------
    name : str
    module : nn.Module
    ups : tuple of str
        Its children that map into the hidden layer.
    down : str
        Its child that maps out of the hidden layer.
    """

    name: str
    module: Any
    ups: tuple[str, ...]
    down: str

    @property
    def last(self) -> nn.Linear:
        """The map from the hidden layer to the output."""
        return getattr(self.module, self.down)

    @property
    def width(self) -> int:
        """Number of hidden units."""
        return self.last.in_features


@final
@dataclass(frozen=True)
class UnitUse(State):
    """Counts of how often hidden units were among the most active.

    Parameters
    ----------
    names : tuple of str
        Of the blocks.
    counts : tuple of Int[Tensor, "unit"]
        Tokens at which a unit was among the most active.
    tokens : int
    top : float
        Share of units that count as active at a token.
    model : str
        Record of the model that was read, as of ``sonde.tap.model_record``.
    """

    names: tuple[str, ...]
    counts: tuple[Int[Tensor, "unit"], ...]
    tokens: int
    top: float
    model: str

    def merge(self, other: "UnitUse") -> "UnitUse":
        """Return the merged counts of both sets of tokens.

        Raises
        ------
        StateError
            If they were read on another model, or with another ``top``.
        """
        apart = difference_of_models(self.model, other.model)
        if apart is not None:
            raise StateError(
                f"UnitUse.merge: expected units of the same model, got two models: {apart}. "
                "Measure both on one model."
            )
        if (self.names, self.top) != (other.names, other.top):
            raise StateError(
                f"UnitUse.merge: expected the same blocks and the same top, got {self.names} with "
                f"top {self.top:g} and {other.names} with top {other.top:g}. Measure both again."
            )
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return UnitUse(self.names, counts, self.tokens + other.tokens, self.top, self.model)


def unit_use(
    model: Model | nn.Module,
    inputs: Inputs,
    top: float = 0.25,
    *,
    start: int = 0,
    stop: int | None = None,
) -> UnitUse:
    """Return how often hidden units are among the most active, in one pass without gradients.

    Parameters
    ----------
    model : Model or nn.Module
        Model that is run; it is not changed.
    inputs : Inputs
        Inputs that the model runs on.
    top : float, default=0.25
        Share of units that count as active at a token, at least one unit.
    start, stop : int, optional
        Read these examples alone.

    Raises
    ------
    InputError
        If the model has no dense block, or a block reads no token.
    """
    if not 0 < top <= 1:
        raise InputError(f"unit_use: expected top in (0, 1], got {top}.")
    live, end = as_model(model), len(inputs) if stop is None else min(stop, len(inputs))
    blocks = {one.last: one for one in dense_blocks("unit_use", live.module)}
    lengths = {down: down.weight.detach().norm(dim=0) for down in blocks}
    counts = {down: torch.zeros(one.width, dtype=torch.int64) for down, one in blocks.items()}
    n = dict.fromkeys(blocks, 0)
    with Bar("hidden units", end - start) as bar:
        for batch in map(right_padded, inputs.batches(start, end)):
            args, kwargs = place_of(live.module, batch).call(batch.args, batch.kwargs)
            for down, x in calls_of(live.module, list(blocks), args, kwargs):
                rows = without_padding(x, batch).flatten(0, -2)
                k = max(1, round(top * rows.shape[1]))
                active = (rows.abs() * lengths[down]).topk(k, 1).indices  # pyright: ignore[reportArgumentType]
                active_counts = torch.bincount(active.flatten().cpu(), minlength=rows.shape[1])
                counts[down] += active_counts  # pyright: ignore[reportArgumentType]
                n[down] += len(rows)  # pyright: ignore[reportArgumentType]
            bar.advance(len(batch))
    if min(n.values()) == 0:
        raise InputError("unit_use: expected tokens at every block, got none. Pass more data.")
    names = tuple(one.name for one in blocks.values())
    seen = tuple(counts.values())
    return UnitUse(names, seen, max(n.values()), top, model_record(live.module))


def dense_blocks(owner: str, module: nn.Module) -> list[DenseBlock]:
    """Return a model's blocks of one hidden layer: modules with two or three linear maps only.

    Raises
    ------
    InputError
        If there is none.
    """
    blocks: list[DenseBlock] = []
    for name, part in module.named_modules():
        maps = {n: c for n, c in part.named_children() if isinstance(c, nn.Linear)}
        if not name or not 2 <= len(maps) <= 3:
            continue
        *ups, down = maps
        wide, out = maps[down].in_features, maps[down].out_features
        shapes = {(maps[up].in_features, maps[up].out_features) for up in ups}
        own = {id(p) for one in maps.values() for p in one.parameters()}
        alone = all(id(p) in own for p in part.parameters())
        if alone and shapes == {(out, wide)} and wide != out:
            blocks.append(DenseBlock(name, part, tuple(ups), down))
    if not blocks:
        raise InputError(
            f"{owner}: expected dense blocks, modules with one or two linear maps into a hidden "
            f"layer and one out of it, got none in {type(module).__name__}."
        )
    return blocks


def by_length(block: DenseBlock) -> Float[Tensor, "unit"]:
    """Return the product of the norms of each unit's input and output weights."""
    size = block.last.weight.detach().norm(dim=0)
    for up in block.ups:
        size = size * block.module.get_submodule(up).weight.detach().norm(dim=1)
    return size
