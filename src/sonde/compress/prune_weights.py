"""Remove the least important weights, by their size or by their effect on outputs.

Weights that are left keep their values unless ``refit`` is set; ``SparseGPT`` chooses the mask and
adjusts the weights together. Files hold the weights
that are left, and a bit for each weight; in memory the tensor keeps its size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

from jaxtyping import Bool, Float
from torch import Tensor

from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._masks import check_pattern, check_width, lowest, lowest_of_runs
from sonde.compress.grams import LayerGrams, grams_for, lifted, parts_of
from sonde.compress.sparse_gpt import refitted
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.stats import Shrinkage, check_shrinkage
from sonde.weights import Change, Examples, Pruned, Rewrite, RewritePlan


@renamed(remove="share")
@final
@dataclass(frozen=True)
class PruneWeights(Rewrite):
    """Set the least important weights of each row or layer to 0.

    ``magnitude`` scores a weight by ``|w|``; ``wanda`` by ``|w| * ||x||``, with the norm of the
    input that it multiplies. If the inputs of a layer are uncorrelated, a mask by ``wanda`` within
    rows has the smallest output error of all masks that change no other weight. With ``refit`` the
    weights of a row that are left are fitted to the row's old outputs by least squares.

    Range        the same number in every group, ``remove`` of its size rounded half to even; of
                 equal scores the first by index is removed.
    Cost         one sort of the weights; ``wanda`` and ``refit``: one pass over the data;
                 ``refit``: one system of equations for each row, O(out dim^3).
    Assumes      finite weights; ``wanda`` and ``refit``: inputs of the kind that the model will
                 meet.
    Differs      from the papers: nothing is trained afterwards; ``refit`` is ours; all layers are
                 scored at the inputs of the whole model.

    Parameters
    ----------
    remove : float, default=0.5
        Fraction of the weights that becomes zero, in [0, 1); 0 changes nothing.
    score : {"magnitude", "wanda"}, default="magnitude"
        How a weight's importance is computed: its size (``magnitude``), or its size times the norm
        of its input (``wanda``).
    within : {"row", "layer"}, default="row"
        Group in which weights are compared; ``wanda`` compares only within rows.
    pattern : str, optional
        ``2:4`` keeps two of every four neighbours in a row, in place of a share.
    refit : bool, default=False
        Solve for all kept weights of a row at once. The output error on the calibration inputs is
        then the smallest for the mask, but for ``shrinkage``.
    shrinkage : float or "oas", default="oas"
        Fraction in [0, 1] of its mean that ``refit`` adds to the diagonal of the second moment, so
        that few rows do not decide alone; "oas" estimates it from their number, 0 adds nothing.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    sun2024wanda
    """

    remove: float = 0.5
    score: Literal["magnitude", "wanda"] = "magnitude"
    within: Literal["row", "layer"] = "row"
    pattern: str | None = None
    refit: bool = False
    shrinkage: Shrinkage = "oas"
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "sun2024wanda"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"score": "wanda", "pattern": "2:4"},
        {"remove": 0.3, "within": "layer", "layers": ("*",)},
        {"remove": 0.4, "refit": True},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)")
        check_pattern("PruneWeights", self.pattern)
        check_shrinkage("PruneWeights", self.shrinkage)
        if self.score == "wanda" and self.within != "row":
            raise InputError(
                "PruneWeights: expected within='row' for wanda, whose scores are comparable "
                f"only within a row, got {self.within!r}."
            )

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them, if anything uses them."""
        optional = self.score == "magnitude" and not self.refit
        return {"calibration": Examples(optional=optional, summed=LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams | None = None) -> RewritePlan:
        """Return the weights with zeros in them."""
        changes: dict[str, Change] = {}
        if self.remove > 0 or self.pattern is not None:
            layers = weighted_layers("PruneWeights", model, self.layers)
            grams = None
            if (self.score == "wanda" or self.refit) and calibration is not None:
                grams = grams_for("PruneWeights", model, calibration, self.layers)
            for layer in layers:
                gone = self._removed(layer, self._scores(layer, model, grams))
                new = layer.matrix().masked_fill(gone, 0.0)
                if self.refit and grams is not None:
                    for rows, h in parts_of(layer, model, grams):
                        certain = lifted(h, layer, model, grams, self.shrinkage)
                        new[rows] = refitted(layer.matrix()[rows], new[rows], gone[rows], certain)
                changes[layer.weight] = Pruned(layer.tensor(new))
        return RewritePlan.of(model, changes, method_of("PruneWeights", asdict(self)))

    def _scores(
        self, layer: Weighted, model: Model, grams: LayerGrams | None
    ) -> Float[Tensor, "out in"]:
        scores = layer.matrix().abs()
        if self.score == "wanda" and grams is not None:
            for rows, h in parts_of(layer, model, grams):
                scores[rows] *= h.diagonal().sqrt()
        return scores

    def _removed(self, layer: Weighted, scores: Tensor) -> Bool[Tensor, "out in"]:
        if self.pattern is not None:
            check_width("PruneWeights", self.pattern, scores.shape[1], layer.weight)
            return lowest_of_runs(scores, self.pattern)
        groups = scores.reshape(1, -1) if self.within == "layer" else scores
        gone = lowest(groups, round(self.remove * groups.shape[1]))
        return gone.reshape(scores.shape)
