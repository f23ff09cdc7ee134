"""Scale up columns with large inputs before rounding, and divide the inputs accordingly (AWQ).

For layers whose inputs have a few large channels. Rounds to the nearest; ``GPTQ`` also moves errors
to weights that are not yet rounded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.compress._grid import Symmetry, check_grid, method_of, rounded, rounded_to
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._output_grid import output_grid
from sonde.compress._scaling import ScaleGroup, scale_groups, scaled_tensors
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.gptq import loss_of
from sonde.compress.grams import LayerGrams, layer_grams, parts_of
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Change, Examples, Exchange, Grid, Quantised, Rewrite, RewritePlan

LEAST = 1e-4


@final
@dataclass(frozen=True)
class AWQ(Rewrite):
    """Round weights to a grid after scaling columns by the size of their inputs.

    Columns are multiplied by ``t = a^p``, with ``a`` the root mean square of an input, or by
    ``a^p / v^(1 - p)`` with ``v`` the mean size of a column, and rounded; the inputs are divided by
    ``t`` in the norm or the linear layer before. Both kinds are tried with ``steps`` powers in
    [0, 1), and no scale is tried too: the scale with the smallest output error is taken. A narrower
    grid is taken if that lowers the error.

    Range        as ``RTN``. Scales are chosen so that the summed output error of the layers that
                 read one tensor is not above that of ``RTN`` on the calibration inputs; the error
                 of a single layer may be. Layers whose input no module can divide are not scaled;
                 ``figures["scaled"]`` counts those that are.
    Cost         one pass over the data, a run of the block for each group of layers, ``2 steps``
                 roundings of each layer.
    Assumes      inputs of the kind that the model will meet.
    Differs      from the paper: the error is that of the layer's output by the second moment of its
                 inputs, not of the block; root mean squares in place of mean sizes; the module that
                 divides is found by trying.

    Parameters
    ----------
    bits : int or None, default=4
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale; 0: all of them.
    symmetry : {"asymmetric", "symmetric"}, default="asymmetric"
        Whether a group's grid has an offset of its own (``asymmetric``) or is even around 0
        (``symmetric``).
    steps : int, default=20
        Powers that are tried.
    clip : bool, default=True
        Try narrower grids, and grids of other offsets (``RTN`` with ``clip="output"``).
    smooth_only : bool, default=False
        Write the scales into the model and round nothing.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    lin2024awq
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    steps: int = 20
    clip: bool = True
    smooth_only: bool = False
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "lin2024awq"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"steps": 4},
        {"bits": 2, "group": 5, "symmetry": "symmetric", "steps": 3, "layers": ("*",)},
        {"bits": 3, "steps": 3, "clip": False},
    )

    def __post_init__(self) -> None:
        check_grid("AWQ", self.bits, self.group)
        check_ranges(self, steps=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples, which also show the modules whose outputs can be divided."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the rounded weights, and the divided weights of the preceding modules."""
        changes: dict[str, Change] = {}
        figures: dict[str, float] = {}
        if self.bits is not None:
            beside = names_of_tensors(model.module, self.layers)
            layers = weighted_layers("AWQ", model, self.layers, beside=beside)
            names = None if self.layers is None else tuple(self.layers)
            grams = layer_grams(model, calibration, layers=names, progress=False)
            groups = scale_groups(model, layers, calibration)
            scales = [(group, self._scale(group, model, grams)) for group in groups]
            new = scaled_tensors(model.module, scales)
            changes |= {name: Exchange(x) for name, x in new.items()}
            figures = {"scaled": float(sum(len(group.layers) for group in groups))}
            losses = torch.zeros(2, dtype=torch.float64)
            divided = {group.source: group.of_source(scale) for group, scale in scales}
            scale_of = {one.name: scale for group, scale in scales for one in group.layers}
            for layer in [] if self.smooth_only else layers:
                matrix = layer.matrix()
                scale = scale_of.get(layer.name, torch.ones_like(matrix[0]))
                rows = divided.get(layer.name, torch.ones_like(matrix[:, 0]))[:, None]
                change, lost = self._rounded(layer, scale, rows, model, grams)
                changes[layer.weight] = change
                losses += lost
            if not self.smooth_only:
                figures |= {"loss": float(losses[0]), "loss_rtn": float(losses[1])}
        word = method_of("AWQ", asdict(self))
        if self.bits is None or self.smooth_only:
            return RewritePlan.of(model, changes, word, **figures)
        asked = self.bits, self.group, self.symmetry
        return plan_with_tensors(model, self.layers, asked, changes, word, figures)

    def _scale(self, group: ScaleGroup, model: Model, grams: LayerGrams) -> Float[Tensor, "in"]:
        """Return the scale with the smallest error: 1, or a power of the size of the inputs."""
        h = next(parts_of(group.layers[0], model, grams))[1]
        w = torch.cat([layer.matrix() for layer in group.layers])
        size = h.diagonal().clamp(min=0).sqrt()
        size = torch.where(size > 0, size, 1.0)
        column = w.abs().mean(0)
        column = torch.where(column > 0, column, 1.0)
        best = torch.ones_like(size)
        least = self._error(w, h, best)
        for power in torch.arange(self.steps, dtype=torch.float64) / self.steps:
            for scale in (size**power, size**power / column ** (1 - power)):
                scale = scale / (scale.max() * scale.min()).sqrt()
                scale = group.shared(scale.clamp(min=LEAST))
                error = self._error(w, h, scale)
                if error < least:
                    best, least = scale, error
        return best

    def _error(self, w: Tensor, h: Tensor, scale: Tensor) -> Tensor:
        return loss_of(w - self._round(w * scale) / scale, h).sum()

    def _round(self, w: Tensor, clip: str | None = None) -> Tensor:
        quantised = rounded(w, self._grid(w), self.symmetry, clip)
        return quantised.of(w)

    def _grid(self, w: Tensor) -> Grid:
        assert self.bits is not None
        return Grid.over(self.bits, self.group, w.shape[1])

    def _rounded(
        self, layer: Weighted, scale: Tensor, rows: Tensor, model: Model, grams: LayerGrams
    ) -> tuple[Quantised, Float[Tensor, "two"]]:
        """Return the codes of a layer, its loss, and the loss of plain rounding.

        Parameters
        ----------
        layer : Weighted
        scale : Float[Tensor, "in"]
            Factors of the columns.
        rows : Float[Tensor, "out 1"]
            Divisors of the rows, if the layer divides the input of a later layer.
        model : Model
        grams : LayerGrams
        """
        plain = layer.matrix()
        w = plain * scale / rows
        clips = (None, "mse") if self.clip else (None,)
        both = [rounded(w, self._grid(w), self.symmetry, clip) for clip in clips]
        moments = list(parts_of(layer, model, grams))
        if self.clip:
            own = [(part, h / torch.outer(scale, scale)) for part, h in moments]
            best = output_grid(w, self._grid(w), self.symmetry, own)
            both.append(rounded_to(w, self._grid(w), best))
        tried = [*(one.matrix() / scale * rows for one in both), self._round(plain)]
        losses = torch.zeros(len(tried), len(plain), dtype=torch.float64)
        for part, h in moments:
            for loss, value in zip(losses, tried, strict=True):
                loss[part] = loss_of(plain[part] - value[part], h).cpu()
        which, every = losses[:-1].argmin(0), torch.arange(len(plain))
        chosen = [torch.stack([getattr(one, name) for one in both])[which, every]
                 for name in ("codes", "scale", "offset")]  # fmt: skip
        lost = torch.stack([losses[:-1].amin(0).sum(), losses[-1].sum()])
        parts = (chosen[0], chosen[1], chosen[2], self._grid(plain), plain.shape[1])
        return Quantised(*parts, turned=layer.turned), lost
