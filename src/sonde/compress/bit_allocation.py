"""Choose the number of bits of each layer, for the least divergence within a total size.

For mean widths between whole numbers, and for models whose answers depend on some layers more than
on others. Each layer is then rounded by ``GPTQ``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.compress._grid import method_of, rounded
from sonde.compress._layer_scores import LayerScore, LayerScores
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.allocate import allocate
from sonde.compress.fidelity import fidelity
from sonde.compress.gptq import GPTQ, loss_of
from sonde.compress.grams import LayerGrams, grams_for, parts_of
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Change, Examples, Grid, Rewrite, RewritePlan

MOST_RUN = 16
"""Examples on which answers are compared, for each layer."""


@final
@dataclass(frozen=True)
class BitAllocation(Rewrite):
    """Round layers to different numbers of bits within a mean number of bits.

    The cost of a layer at ``b`` bits is the output error ``tr(E H E^T)`` of plain rounding, times a
    factor of the layer. For ``kl`` the factor is the rise of the answers' divergence per unit of
    error, measured with that layer alone rounded to the smallest width. For ``error`` the factor is
    one over the layer's output energy. The widths with the least sum of costs within the bytes are
    found by dynamic programming, as ``allocate`` does.

    With ``score``, layers are ordered as papers order them, and as many as fit into the mean width
    get the largest of ``widths``, the others the smallest. ``lim``: blocks by minus the mean cosine
    of the states before and behind them. ``cca``: blocks by minus the mean canonical correlation of
    these states. ``zd``: layers by minus the fraction of weights more than a standard deviation
    above their mean. ``prune``: by the divergence of the answers without the smallest tenth of the
    weights. ``taylor``: by the sum of ``gradient size x change of the weight`` at the smallest
    width. Layers outside of blocks come first for ``lim`` and ``cca``.

    Range        the sum of codes is at most ``bits`` in the mean; scales come on top, the same for
                 all widths.
    Cost         one pass over the data, roundings at every width, then ``GPTQ``; ``kl``: a run of
                 16 examples for each layer.
    Assumes      divergences of layers add up, and grow in proportion to the layer's error.
    Differs      from the papers: they order layers by a score; costs and the programme are ours.
                 ``taylor`` takes the root mean square of the gradients of single examples, with
                 answers drawn from the model, since the gradient of the mean loss is nearly zero
                 where training ended. ``prune`` takes the divergence, the mean rise of the loss
                 for such answers.

    Parameters
    ----------
    bits : float or None, default=4
        Mean width of codes; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale.
    widths : sequence of int, default=(2, 3, 4, 5, 6, 8)
        Numbers of bits to choose from.
    by : {"kl", "error"}, default="kl"
        What turns a layer's output error into its cost: the divergence of the answers (``kl``) or
        one over the layer's output energy (``error``).
    score : {"lim", "cca", "zd", "prune", "taylor"}, optional
        Order layers by this score, in place of ``by``.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    dumitru2024layerwise
    """

    bits: float | None = 4
    group: int = 32
    widths: Sequence[int] = (2, 3, 4, 5, 6, 8)
    by: Literal["kl", "error"] = "kl"
    score: LayerScore | None = None
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "dumitru2024layerwise"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 3.5, "group": 5, "by": "error", "widths": (2, 4), "layers": ("*",)},
        {"bits": 3, "group": 5, "widths": (2, 4), "score": "zd"},
    )

    def __post_init__(self) -> None:
        widths = tuple(self.widths)
        if not widths or not all(1 < b <= 8 for b in widths):
            raise InputError(f"BitAllocation: expected widths from 2 to 8, got {widths}.")
        if self.bits is not None and not min(widths) <= self.bits <= 8:
            raise InputError(
                f"BitAllocation: expected mean bits from {min(widths)} (the smallest width) to "
                f"8, got {self.bits:g}."
            )
        check_ranges(self, group=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples; for ``error``, moments of the layers' inputs suffice."""
        sums = self.score == "zd" if self.score else self.by == "error"
        return {"calibration": Examples(summed=LayerGrams if sums else None)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the rounded weights."""
        changes, word = dict[str, Change](), method_of("BitAllocation", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, changes, word)
        names = names_of_tensors(model.module, self.layers)
        layers = weighted_layers("BitAllocation", model, self.layers, beside=names)
        asked = int(self.bits), self.group, "asymmetric"
        if not layers:
            return plan_with_tensors(model, self.layers, asked, changes, word)
        grams = grams_for("BitAllocation", model, calibration, self.layers)
        numbers = torch.tensor([layer.module.weight.numel() for layer in layers])
        sizes = numbers[:, None] * torch.tensor(tuple(self.widths))
        budget = int(self.bits * int(numbers.sum()))
        if self.score is None:
            costs = torch.stack([self._errors(layer, model, grams) for layer in layers])
            costs *= self._units(layers, costs, model, grams, calibration)[:, None]
            chosen = allocate(costs, sizes, budget)
            figures = {"cost": sum(float(costs[row, i]) for row, i in enumerate(chosen))}
        else:
            inputs = None if isinstance(calibration, LayerGrams) else calibration
            least = Grid(min(self.widths), self.group)
            scores = LayerScores(model, layers, inputs, least, MOST_RUN).of(self.score)
            chosen = _in_order(scores, sizes, budget)
            named = zip(layers, scores.tolist(), strict=True)
            figures = {f"score.{layer.name}": score for layer, score in named}
        for layer, i in zip(layers, chosen, strict=True):
            rule = GPTQ(self.widths[i], self.group, layers=(layer.name,))
            changes |= rule.planned(model, grams).changes
        spent = sum(int(sizes[row, i]) for row, i in enumerate(chosen))
        figures = {"bits": spent / int(numbers.sum()), **figures}
        return plan_with_tensors(model, self.layers, asked, changes, word, figures)

    def _errors(self, layer: Weighted, model: Model, grams: LayerGrams) -> Float[Tensor, "width"]:
        """Return the output error of a layer at each number of bits."""
        w = layer.matrix()
        gaps = [w - rounded(w, Grid(b, self.group), "asymmetric").matrix() for b in self.widths]
        errors = torch.zeros(len(gaps), dtype=torch.float64)
        for rows, h in parts_of(layer, model, grams):
            for i, gap in enumerate(gaps):
                errors[i] += loss_of(gap[rows], h).sum().cpu()
        return errors

    def _units(
        self,
        layers: Sequence[Weighted],
        errors: Float[Tensor, "layer width"],
        model: Model,
        grams: LayerGrams,
        calibration: Inputs | LayerGrams,
    ) -> Float[Tensor, "layer"]:
        """Return the cost per unit of each layer's error."""
        costs: list[float] = []
        low = min(range(len(self.widths)), key=self.widths.__getitem__)
        for layer, error in zip(layers, errors[:, low].tolist(), strict=True):
            if isinstance(calibration, LayerGrams) or self.by == "error":
                w = layer.matrix()
                parts = parts_of(layer, model, grams)
                cost = 1 / max(sum(float(loss_of(w[r], h).sum()) for r, h in parts), 1e-300)
            else:
                rule = GPTQ(self.widths[low], self.group, layers=(layer.name,), guard=True)
                plan = rule.planned(model, grams)
                changed = fidelity(model, plan.fold(model), calibration, stop=MOST_RUN)
                lost = max(plan.figures["loss"], 1e-300)
                cost = changed.kl / lost if error > 0 else 0.0
            costs.append(cost)
        return torch.tensor(costs, dtype=torch.float64)


def _in_order(
    scores: Float[Tensor, "layer"], sizes: Int[Tensor, "layer width"], budget: int
) -> list[int]:
    """Return the most bits for the layers of highest score that fit, the fewest for all others."""
    narrow, wide = int(sizes[0].argmin()), int(sizes[0].argmax())
    chosen, left = [narrow] * len(sizes), budget - int(sizes[:, narrow].sum())
    for layer in scores.argsort(descending=True, stable=True).tolist():
        left -= int(sizes[layer, wide] - sizes[layer, narrow])
        if left < 0:
            break
        chosen[layer] = wide
    return chosen
