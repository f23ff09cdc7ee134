"""Round each weight to the nearest point of a grid: the baseline, mostly without data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

import torch

from sonde.compress._grid import (
    Symmetry,
    check_grid,
    clipped_grid,
    method_of,
    rounded,
    rounded_to,
)
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._output_grid import output_grid
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.grams import LayerGrams, grams_for, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.weights import Change, Examples, Grid, Quantised, Rewrite, RewritePlan

DATA = ("inputs", "output")
"""Values of ``clip`` that choose grids by examples."""
FEW = 4
"""Below so many bits examples, where there are any, choose grids of the whole range or narrower."""


@final
@dataclass(frozen=True)
class RTN(Rewrite):
    """Round each weight to the nearest of ``2^bits`` values that its group shares.

    The values are evenly spaced: over the range of the group's entries and 0, or symmetric around
    0. Scale and offset are kept in bfloat16, and codes are computed with these. With
    ``clip="output"`` each row takes the grid for which the layer's output changes least: with a
    free offset, with 0 among its values, or symmetric, over 1, 0.85 or 0.7 of its range. Below 4
    bits this is the default if there are examples.

    Range        linear layers become ``QuantLinear``; stacks of experts and embeddings that are
                 named keep their class and hold codes; a convolution that is named stays one, with
                 rounded weights in its old type: no bytes are saved there.
    Cost         one pass over the weights; no data. With ``clip="output"``, or examples for fewer
                 than 4 bits, one pass over the data and five products of the size of
                 ``weight x H``; with ``clip="inputs"`` one pass over the data.
    Assumes      finite weights.
    Differs      from common libraries: scales are rounded before codes are computed; a last group
                 may be short.

    Parameters
    ----------
    bits : int or None, default=4
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    symmetry : {"asymmetric", "symmetric"}, default="asymmetric"
        Symmetric grids have no offset.
    clip : {"mse", "inputs", "output"}, optional
        By default the whole range; of fewer than 4 bits "output", if examples are passed. "mse":
        give each group the grid with the smallest squared error, of 21 from its whole range
        to half of it; weights outside go to the grid's end. "inputs": the same, where the error of
        a weight counts by the mean square of its input on examples. "output": give each row the
        grid with the smallest error of the layer's output on examples.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    frantar2023gptq
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    clip: Literal["mse", "inputs", "output"] | None = None
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "frantar2023gptq"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 3, "group": 5, "symmetry": "symmetric", "layers": ("*",)},
        {"bits": 2, "clip": "mse"},
        {"bits": 3, "clip": "output"},
        {"bits": 3, "clip": "inputs"},
    )

    def __post_init__(self) -> None:
        check_grid("RTN", self.bits, self.group)

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs, to choose grids by the output."""
        if self.clip in DATA:
            return {"calibration": Examples(summed=LayerGrams)}
        chooses = self.clip is None and self.bits is not None and self.bits < FEW
        return {"calibration": Examples(optional=True, summed=LayerGrams if chooses else None)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams | None = None) -> RewritePlan:
        """Return the rounded weights."""
        changes, word = dict[str, Change](), method_of("RTN", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, changes, word)
        names = names_of_tensors(model.module, self.layers)
        layers = weighted_layers("RTN", model, self.layers, beside=names)
        (need,) = self.reads().values()
        if need.summed is not None and calibration is not None:
            grams = grams_for("RTN", model, calibration, self.layers)
            changes = {one.weight: self._by_inputs(one, model, grams) for one in layers}
        else:
            for layer in layers:
                matrix = layer.matrix_of(layer.module.weight.detach())
                grid = Grid.over(self.bits, self.group, matrix.shape[1])
                changes[layer.weight] = rounded(matrix, grid, self.symmetry, self.clip, layer)
        asked = self.bits, self.group, self.symmetry
        return plan_with_tensors(model, self.layers, asked, changes, word)

    def _by_inputs(self, layer: Weighted, model: Model, grams: LayerGrams) -> Quantised:
        """Return a layer's weight on the grids with the smallest error on its inputs."""
        assert self.bits is not None  # ``planned`` returns before
        matrix = layer.matrix()
        grid = Grid.over(self.bits, self.group, matrix.shape[1])
        parts = list(parts_of(layer, model, grams))
        if self.clip != "inputs":
            return rounded_to(matrix, grid, output_grid(matrix, grid, self.symmetry, parts), layer)
        each = [clipped_grid(matrix[rows], grid, self.symmetry, h.diagonal()) for rows, h in parts]
        scales, offsets = zip(*each, strict=True)
        return rounded_to(matrix, grid, (torch.cat(scales), torch.cat(offsets)), layer)
