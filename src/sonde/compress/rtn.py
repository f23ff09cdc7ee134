"""Round each weight to the nearest point of a grid: the baseline, without data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

from sonde.compress._grid import Symmetry, check_grid, method_of, rounded
from sonde.compress._layers import weighted_layers
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.core.inputs import Model
from sonde.weights import Change, Grid, Rewrite, RewritePlan


@final
@dataclass(frozen=True)
class RTN(Rewrite):
    """Round each weight to the nearest of ``2^bits`` values that its group shares.

    The values are evenly spaced: over the range of the group's entries and 0, or symmetric around
    0. Scale and offset are kept in bfloat16, and codes are computed with these.

    Range        linear layers become ``QuantLinear``; stacks of experts and embeddings that are
                 named keep their class and hold codes; a convolution that is named stays one, with
                 rounded weights in its old type: no bytes are saved there.
    Cost         one pass over the weights; no data.
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
    clip : {"mse"}, optional
        Give each group the grid with the smallest squared error, of 21 from its whole range to half
        of it; weights outside go to the grid's end.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    frantar2023gptq
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    clip: Literal["mse"] | None = None
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "frantar2023gptq"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 3, "group": 5, "symmetry": "symmetric", "layers": ("*",)},
        {"bits": 2, "clip": "mse"},
    )

    def __post_init__(self) -> None:
        check_grid("RTN", self.bits, self.group)

    def planned(self, model: Model) -> RewritePlan:
        """Return the rounded weights."""
        changes, word = dict[str, Change](), method_of("RTN", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, changes, word)
        names = names_of_tensors(model.module, self.layers)
        for layer in weighted_layers("RTN", model, self.layers, beside=names):
            matrix = layer.matrix()
            grid = Grid.over(self.bits, self.group, matrix.shape[1])
            changes[layer.weight] = rounded(matrix, grid, self.symmetry, self.clip, layer)
        asked = self.bits, self.group, self.symmetry
        return plan_with_tensors(model, self.layers, asked, changes, word)
