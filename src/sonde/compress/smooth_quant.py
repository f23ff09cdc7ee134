"""Scale large input channels into the weights, so that inputs can also be rounded to 8 bits.

For models that run where inputs are rounded too. Nothing here rounds inputs: this writes the scales
into the model, and rounds weights if asked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._grid import check_grid, method_of, rounded
from sonde.compress._layers import weighted_layers
from sonde.compress._scaling import ScaleGroup, scale_groups, scaled_tensors
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.grams import report_broken, without_padding
from sonde.core.finite import finite_rows
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.tap import calls_of, place_of
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, Examples, Exchange, Grid, Rewrite, RewritePlan

LEAST = 1e-5


@final
@dataclass(frozen=True)
class SmoothQuant(Rewrite):
    """Divide inputs of layers by scales, and multiply the columns that read them.

    ``t = max|x|^power / max|w|^(1 - power)`` of each channel, over the examples and over all layers
    that read the tensor. With a power of 0.5, input and column of a channel then have the same
    largest size. The division is written into the norm or linear layer before.

    Range        answers stay as they are if nothing is rounded; ``figures["scaled"]`` counts layers
                 with scales, others have no module before them that can divide.
    Cost         one pass over the data, and a run of the block for each group of layers.
    Assumes      examples that reach the largest inputs.
    Differs      from the paper: inputs are not rounded here, which module can divide is found by
                 trying, and weights are rounded in groups.

    Parameters
    ----------
    bits : int or None, default=8
        2 to 8; None changes nothing.
    power : float, default=0.5
        In (0, 1): larger values move more of the size from inputs to weights.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    smooth_only : bool, default=False
        Write the scales into the model and round nothing.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    xiao2023smoothquant
    """

    bits: int | None = 8
    power: float = 0.5
    group: int = 32
    smooth_only: bool = False
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "xiao2023smoothquant"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 4, "power": 0.8, "group": 5, "layers": ("*",)},
    )

    def __post_init__(self) -> None:
        check_grid("SmoothQuant", self.bits, self.group)
        check_ranges(self, power="(0, 1)")

    def reads(self) -> dict[str, Examples]:
        """Read examples, for the largest inputs and for the modules that can divide them."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the scaled and rounded weights, and the divided weights of preceding modules."""
        changes: dict[str, Change] = {}
        figures: dict[str, float] = {}
        if self.bits is not None:
            beside = names_of_tensors(model.module, self.layers)
            layers = weighted_layers("SmoothQuant", model, self.layers, beside=beside)
            groups = scale_groups(model, layers, calibration)
            largest = _largest_inputs(model, groups, calibration)
            scales = [
                (group, self._scale(group, x)) for group, x in zip(groups, largest, strict=True)
            ]
            new = scaled_tensors(model.module, scales)
            changes |= {name: Exchange(x) for name, x in new.items()}
            for layer in [] if self.smooth_only else layers:
                w = layer.matrix_of(new[layer.weight]) if layer.weight in new else layer.matrix()
                grid = Grid.over(self.bits, self.group, w.shape[1])
                changes[layer.weight] = rounded(w, grid, "symmetric", layer=layer)
            figures = {"scaled": float(sum(len(group.layers) for group in groups))}
        word = method_of("SmoothQuant", asdict(self))
        if self.bits is None or self.smooth_only:
            return RewritePlan.of(model, changes, word, **figures)
        grid = self.bits, self.group, "symmetric"
        return plan_with_tensors(model, self.layers, grid, changes, word, figures)

    def _scale(self, group: ScaleGroup, inputs: Tensor) -> Float[Tensor, "in"]:
        columns = torch.cat([layer.matrix() for layer in group.layers]).abs().amax(0)
        scale = inputs**self.power / columns.clamp(min=LEAST) ** (1 - self.power)
        scale = torch.where((inputs > 0) & (columns > 0), scale.clamp(min=LEAST), 1.0)
        return group.shared(scale)


@torch.no_grad()
def _largest_inputs(
    model: Model, groups: Sequence[ScaleGroup], inputs: Inputs
) -> list[Float[Tensor, "_in"]]:
    """Return the largest absolute value of each input over all real tokens, group by group."""
    firsts: list[nn.Module] = [group.layers[0].module for group in groups]
    largest_of: dict[nn.Module, Tensor] = {}
    n_rows = n_finite = 0
    for batch in map(right_padded, inputs.batches(0, len(inputs))):
        args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
        for part, x in calls_of(model.module, firsts, args, kwargs):
            rows = without_padding(x, batch)
            rows = rows.reshape(-1, rows.shape[-1])
            finite = rows[finite_rows(rows)]
            n_rows, n_finite = n_rows + len(rows), n_finite + len(finite)
            if len(finite):
                largest = finite.abs().double().amax(0)
                largest_of[part] = torch.maximum(largest_of.get(part, largest), largest)
    report_broken("SmoothQuant.plan", n_rows - n_finite, n_finite)
    none = [torch.zeros(group.layers[0].matrix().shape[1]).double() for group in groups]
    return [largest_of.get(part, zero) for part, zero in zip(firsts, none, strict=True)]
