"""Fit changes of layers to the layers' inputs: all layers at once, or block after block.

One pass reads the inputs of all layers in the unchanged model. Block after block, the layers of a
block are fitted at the states that the changed blocks before it give: states are kept between
blocks, so that each block runs twice and the model runs once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sonde.compress._blocks import BlockCall, Blocks, block_calls, placed_call
from sonde.compress._grid import Symmetry
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.grams import (
    LayerGrams,
    add_rows,
    grams_for,
    layers_of_weight,
    report_broken,
    require_rows,
)
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.stats import MomentsState
from sonde.tap import calls_of
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.session import Session
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, RewritePlan
from sonde.weights.live import with_tensors

Solve = Callable[[Weighted, Model, Any], tuple[Change | None, Mapping[str, float]]]


def each_layer(
    owner: str,
    model: Model,
    calibration: Inputs | LayerGrams | None,
    layers: Sequence[str] | None,
    solve: Solve,
    *,
    sequential: bool = False,
    beside: Sequence[str] = (),
) -> tuple[dict[str, Change], dict[str, float]]:
    """Return the change of each layer by the name of its weight, and the summed statistics.

    Parameters
    ----------
    owner : str
        For errors.
    model : Model
    calibration : Inputs, LayerGrams or None
        None for methods that need no inputs.
    layers : sequence of str, optional
        Patterns of names.
    solve : callable
        Takes a layer, its model and the moments of inputs. Returns the change (None: the layer
        stays) and figures.
    sequential : bool, default=False
        Fit block after block.
    beside : sequence of str, optional
        Names of tensors that the method packs beside layers.

    Raises
    ------
    InputError
        For ``sequential``, if the model has no blocks, or a block reads other states than the
        block before returned.
    """
    chosen = weighted_layers(owner, model, layers, beside=beside)
    if sequential:
        assert isinstance(calibration, Inputs)  # what such a method says that it reads
        walk = _Walk(owner, model, calibration, chosen, solve)
        walk.run()
        return walk.changes, walk.figures | {"sequential": 1.0}
    grams = None if calibration is None else grams_for(owner, model, calibration, layers)
    changes, figures = dict[str, Change](), dict[str, float]()
    for layer in chosen:
        change, numbers = solve(layer, model, grams)
        _add(changes, figures, layer.weight, change, numbers)
    return changes, figures


def round_each_layer(
    owner: str,
    model: Model,
    calibration: Inputs | LayerGrams,
    layers: Sequence[str] | None,
    grid: tuple[int | None, int, Symmetry],
    solve: Solve,
    word: str,
    *,
    sequential: bool = False,
) -> RewritePlan:
    """Return the plan that rounds each layer, and also tensors outside of layers.

    Parameters
    ----------
    owner, model, calibration, layers, solve, sequential
        As in ``each_layer``.
    grid : (int or None, int, str)
        Bits (None changes nothing), group and symmetry.
    word : str
        The method with its parameters.
    """
    bits, group, symmetry = grid
    if bits is None:
        return RewritePlan.of(model, {}, word)
    names = names_of_tensors(model.module, layers)
    changes, figures = each_layer(
        owner, model, calibration, layers, solve, sequential=sequential, beside=names
    )
    asked = bits, group, symmetry
    return plan_with_tensors(model, layers, asked, changes, word, figures)


def _add(
    changes: dict[str, Change],
    figures: dict[str, float],
    name: str,
    change: Change | None,
    found: Mapping[str, float],
) -> None:
    if change is not None:
        changes[name] = change
    for key, value in found.items():
        figures[key] = figures.get(key, 0.0) + value


@dataclass(eq=False)
class _Stored:
    """A batch between two blocks: its current states, and the recorded calls of the blocks.

    Parameters
    ----------
    batch : InputBatch
    states : Tensor
    calls : list
        Arguments and output of each block, with ``HOLE`` where its states were.
    """

    batch: InputBatch
    states: Tensor
    calls: list[tuple[Any, Any]]

    def arguments(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of block ``i``, with the current states."""
        args, kwargs = replaced(self.calls[i][0], HOLE, self.states)
        return args, kwargs

    def output(self, i: int, states: Tensor) -> Any:
        """Return the recorded output of block ``i``, with ``states`` as its states."""
        return replaced(self.calls[i][1], HOLE, states)


HOLE = torch.zeros(())


@dataclass(eq=False)
class _Walk:
    """Fits one block after another in a copy of the model, which shares unchanged tensors."""

    owner: str
    model: Model
    inputs: Inputs
    chosen: Sequence[Weighted]
    solve: Solve
    changes: dict[str, Change] = field(default_factory=dict[str, Change])
    figures: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self.copy = replace(self.model, module=with_tensors(self.model.module, {}))
        root = self.copy.module
        layers = [Weighted(one.name, root.get_submodule(one.name)) for one in self.chosen]
        self.blocks = Blocks.of(self.owner, self.copy, self.inputs)
        self.stages: list[list[Weighted]] = [[] for _ in self.blocks.modules]
        inner = {part: i for i, block in enumerate(self.blocks.modules) for part in block.modules()}
        self.outside = [layer for layer in layers if layer.module not in inner]
        for layer in layers:
            places = {inner.get(root.get_submodule(n)) for n in layers_of_weight(root, layer.name)}
            if len(places) > 1:
                raise InputError(
                    f"{self.owner}.plan: expected weights that belong to one block only for "
                    f"sequential=True, got {layer.weight}, which others share. Leave it out, or "
                    "use sequential=False."
                )
            if layer.module in inner:
                self.stages[inner[layer.module]].append(layer)

    def run(self) -> None:
        """Fit the layers before the blocks, in each block, and after the blocks."""
        before = self._before()
        behind = [layer for layer in self.outside if layer not in before]
        if before:
            self._fit(before, self._whole(before))
        stored = list(self._stored())
        for i, block in enumerate(self.blocks.modules):
            if self.stages[i]:
                self._fit(self.stages[i], self._of_block(stored, i, self.stages[i]))
            with Session(block), torch.no_grad():
                for one in stored:
                    args, kwargs = one.arguments(i)
                    states = find(block(*args, **kwargs), None)
                    assert states is not None  # it returned states before
                    one.states = states
        if behind:
            self._fit(behind, self._behind(stored, behind))

    def _fit(self, layers: Sequence[Weighted], grams: LayerGrams) -> None:
        """Change layers of the copy."""
        root = self.copy.module
        for layer in layers:
            change, numbers = self.solve(layer, self.copy, grams)
            _add(self.changes, self.figures, layer.weight, change, numbers)
            if change is not None:
                old = layer.module.weight
                new = nn.Parameter(change.of(old).to(old.dtype), old.requires_grad)
                for name in layers_of_weight(root, layer.name):
                    root.get_submodule(name)._parameters["weight"] = new

    def _batches(self) -> Iterator[tuple[InputBatch, tuple[Any, ...], dict[str, Any]]]:
        for batch in map(right_padded, self.inputs.batches(0, len(self.inputs))):
            yield batch, *placed_call(self.copy, batch)

    def _before(self) -> list[Weighted]:
        """Return the layers that run before the first block."""
        if not self.outside:
            return []
        parts = [*(layer.module for layer in self.outside), self.blocks.modules[0]]
        _, args, kwargs = next(self._batches())
        calls = [part for part, _ in calls_of(self.copy.module, parts, args, kwargs)]
        first = calls.index(self.blocks.modules[0])
        return [layer for layer in self.outside if layer.module in calls[:first]]

    def _whole(self, layers: Sequence[Weighted]) -> LayerGrams:
        """Return the moments of layers' inputs over whole forward passes."""
        chosen, moments, broken = _by_module(layers), dict[str, MomentsState](), 0
        for batch, args, kwargs in self._batches():
            calls = calls_of(self.copy.module, list(chosen), args, kwargs)
            broken += add_rows(moments, chosen, calls, batch)
        return _grams(moments, layers, broken)

    def _stored(self) -> Iterator[_Stored]:
        """Yield each batch with the states before the first block.

        Raises
        ------
        InputError
            If a block reads other states than the block before returned.
        """
        for batch, _, _ in self._batches():
            calls_of = block_calls(self.owner, self.copy, self.blocks, batch)
            calls = [calls_of[block] for block in self.blocks.modules]
            for i, (one, two) in enumerate(pairwise(calls)):
                same = one.y.shape == two.x.shape and torch.equal(
                    one.y.nan_to_num(), two.x.nan_to_num()
                )
                if not same:
                    raise InputError(
                        f"{self.owner}.plan: expected each block to read what the block before "
                        "returned for sequential=True, got other states in "
                        f"{self.blocks.name}.{i + 1}. Use sequential=False."
                    )
            yield _Stored(batch, calls[0].x, [_with_hole(call) for call in calls])

    def _of_block(self, stored: Sequence[_Stored], i: int, layers: Sequence[Weighted]) -> Any:
        """Return the moments of the inputs of a block's layers, at the current states."""
        chosen, moments, broken = _by_module(layers), dict[str, MomentsState](), 0
        for one in stored:
            args, kwargs = one.arguments(i)
            calls = calls_of(self.blocks.modules[i], list(chosen), args, kwargs)
            broken += add_rows(moments, chosen, calls, one.batch)
        return _grams(moments, layers, broken)

    def _behind(self, stored: Sequence[_Stored], layers: Sequence[Weighted]) -> LayerGrams:
        """Return the moments of the inputs of layers after the blocks, without rerunning blocks."""
        chosen, moments, broken = _by_module(layers), dict[str, MomentsState](), 0
        last = self.blocks.modules[-1]
        place = {block: i for i, block in enumerate(self.blocks.modules)}
        states = iter(stored)
        for batch, args, kwargs in self._batches():
            one = next(states)

            def passed(
                block: nn.Module,
                forward: Forward,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                one: _Stored = one,
            ) -> Any:
                x = find((args, kwargs), None)
                assert x is not None  # it read states before
                return one.output(place[block], one.states if block is last else x)

            with intercepted(self.blocks.modules, passed):
                calls = calls_of(self.copy.module, list(chosen), args, kwargs)
            broken += add_rows(moments, chosen, calls, batch)
        return _grams(moments, layers, broken)


def _with_hole(call: BlockCall) -> tuple[Any, Any]:
    """Return the arguments and the output of a call, with ``HOLE`` in place of the states."""
    given, result = (call.args, call.kwargs), call.output
    x, y = find(given, None), find(result, None)
    assert x is not None  # both were found when the call was written down
    assert y is not None
    return replaced(given, x, HOLE), replaced(result, y, HOLE)


def _by_module(layers: Sequence[Weighted]) -> dict[nn.Module, Weighted]:
    return {layer.module: layer for layer in layers}


def _grams(
    found: Mapping[str, MomentsState], layers: Sequence[Weighted], broken: int
) -> LayerGrams:
    require_rows(found, layers)
    report_broken("layer_grams", broken, sum(state.n for state in found.values()))
    return LayerGrams.of(found, broken, "")
