"""Keep the sign of each weight and one magnitude for each row: a baseline below two bits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from torch.nn import functional

from sonde.compress._grid import method_of, quantised
from sonde.compress._layers import weighted_layers
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.weights import Change, Grid, Rewrite, RewritePlan


@final
@dataclass(frozen=True)
class SignQuant(Rewrite):
    """Replace each weight by its sign times the mean magnitude of its row or group.

    The mean of ``|w|`` has the smallest squared error of all sizes. A weight of 0 counts as
    positive; a row of zeros stays 0.

    Range        one bit for each weight, and 32 bits for each row or group; linear layers become
                 ``QuantLinear``.
    Cost         one pass over the weights; no data.
    Assumes      finite weights.
    Differs      from the paper: inputs are not rounded, and nothing is trained.

    Parameters
    ----------
    bits : int or None, default=1
        1; None changes nothing.
    group : int, optional
        Entries of a row that share a size; the whole row by default.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    rastegari2016xnor
    """

    bits: int | None = 1
    group: int | None = None
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "rastegari2016xnor"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"group": 5, "layers": ("*",)})

    def __post_init__(self) -> None:
        check_ranges(self, bits=(1, None), group=">= 1")

    def planned(self, model: Model) -> RewritePlan:
        """Return the signs with their magnitudes."""
        changes: dict[str, Change] = {}
        layers = [] if self.bits is None else weighted_layers("SignQuant", model, self.layers)
        for layer in layers:
            matrix = layer.matrix()
            grid = Grid(1, self.group or matrix.shape[1])
            wide = functional.pad(
                matrix.abs(), (0, -matrix.shape[1] % grid.group), value=float("nan")
            )
            size = wide.unflatten(1, (-1, grid.group)).nanmean(2).bfloat16()
            # codes 0 and 1 stand for offset - scale and offset
            changes[layer.weight] = quantised((matrix >= 0).double(), 2 * size, size, grid, layer)
        return RewritePlan.of(model, changes, method_of("SignQuant", asdict(self)))
