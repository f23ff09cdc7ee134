"""Separation of two kinds of inputs (safe and unsafe) over all layers, as one number.

For the indices of one site, with their errors, see ``cluster_indices``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.measure._clusters import NAMES, Labelings, cluster_figures, labelled_rows
from sonde.stats import HashSample, HashSampleState
from sonde.stats.sampled_rows import SampledRows

PARTS = ("davies_bouldin", "dunn", "xie_beni", "eta2")


@final
@dataclass(frozen=True, kw_only=True)
class AlignmentQualityResult(Result):
    """Mean over layers; ``layers`` holds each layer's value, ``parts`` its four indices."""

    title: ClassVar[str] = "Alignment quality"
    direction: Direction = "higher"
    layers: Float[Tensor, "layer"]
    layer_nulls: Float[Tensor, "layer"]
    parts: Float[Tensor, "layer 4"]

    def chart(self) -> Chart:
        """Return a chart of the four parts, their mean and its null over the layers."""
        lines = dict(zip(PARTS, self.parts.T.tolist(), strict=True))
        lines |= {"all": self.layers.tolist(), "null": self.layer_nulls.tolist()}
        rows = [
            {"layer": i, "index": name, "value": v}
            for name, line in lines.items()
            for i, v in enumerate(line)
        ]
        return curves(self.title, rows, "layer", "value", by="index")


@final
@dataclass(frozen=True)
class AlignmentQuality(Instrument):
    """Mean over layers of four cluster indices of labelled rows, each mapped to 0 .. 1.

    The parts are ``1 / (1 + Davies-Bouldin)``, ``Dunn / (1 + Dunn)``, ``1 / (1 + Xie-Beni)`` and
    ``eta2``, the share of variance between the classes. Labels are kinds of inputs (safe, unsafe).
    The value rises with any difference between the kinds, also of length and topic: match the
    inputs in length and topic.

    Range        [0, 1]; higher = better separated.
                 Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state ``m`` rows per site; result O(sites m^2 dim), 1,024 lines at once.
    Assumes      two classes or more, with rows of two groups in each (flag ``few_rows``; NaN if no
                 class has them); rows with label -1 are left out. Dunn's index falls as rows
                 are added: compare values only at equal ``n``.
    Differs      from the paper: maps and weights are ours. The null comes
                 from 20 shuffles of the labels among groups.

    Parameters
    ----------
    weights : tuple of 4 floats, default=(1, 1, 1, 1)
        Weights of the four parts, in the order above.
    m : int, default=2048
        Rows of the sample.
    layer_weights : tuple of float or None, default=None
        Weights of the layers, in their order; None weighs all alike.

    Examples
    --------
    >>> x = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
    >>> round(alignment_quality({"layer": x}, [0, 0, 1, 1]).value, 6)
    0.843243

    References
    ----------
    borah2025alignment
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    m: int = SAMPLE
    layer_weights: tuple[float, ...] | None = None
    span: ClassVar[Span] = "all"
    least_sites: ClassVar[int] = 1
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "borah2025alignment"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64},)

    def __post_init__(self) -> None:
        if len(self.weights) != 4 or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise InputError(
                "AlignmentQuality: expected four weights of at least 0, not all of them 0, got "
                f"{self.weights}."
            )
        given = self.layer_weights
        if given is not None and (min(given, default=-1) < 0 or not sum(given) > 0):
            raise InputError(
                "AlignmentQuality: expected layer weights of at least 0, not all of them 0, got "
                f"{given}."
            )
        check_ranges(self, m=">= 2")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each site's sample, and its labels."""
        return {"samples": HashSample(self.m), "label": HashSample(self.m, column="label")}

    def result(
        self, samples: tuple[HashSampleState, ...], label: tuple[HashSampleState, ...]
    ) -> AlignmentQualityResult:
        """Map each layer's indices to 0 .. 1 and average them."""
        rows, flags = labelled_rows(SampledRows.of([*samples, label[0]]))
        labelings = Labelings.of("AlignmentQuality", rows)
        parts = torch.stack([self._parts(x, labelings).cpu() for x in rows.rows[:-1]], 1)
        weight = torch.tensor(self.weights, dtype=torch.float64)
        layers = parts @ (weight / weight.sum())
        value, se, null = labelings.spread(layers @ self._shares(layers.shape[1]))
        paired = labelings.is_paired
        dead, alone = bool(torch.isnan(value) & paired.any()), not bool(paired.all())
        return AlignmentQualityResult(
            value=float(value),
            se=None if se is None else float(se),
            null=float(null),
            n=len(rows),
            range=(0.0, 1.0),
            flags=(*flags, *(["dead"] if dead else []), *(["few_rows"] if alone else [])),
            conventions={
                "distance": "euclidean",
                "pairs": "of different groups",
                "definition": "sonde",
                "layers": "equal weights" if self.layer_weights is None else self.layer_weights,
                "null": "20 shuffles of the labels",
                "se": labelings.how,
            },
            layers=layers[0],
            layer_nulls=labelings.spread(layers)[2],
            parts=parts[0],
        )

    def _shares(self, n_layers: int) -> Float[Tensor, "layer"]:
        """Return the weight of each layer; the weights sum to 1."""
        given = (1.0,) * n_layers if self.layer_weights is None else self.layer_weights
        if len(given) != n_layers:
            raise InputError(
                f"AlignmentQuality: expected a weight for each of {n_layers} layers, got "
                f"{len(given)}."
            )
        return torch.tensor(given, dtype=torch.float64) / sum(given)

    def _parts(
        self, x: Float[Tensor, "row dim"], labelings: Labelings
    ) -> Float[Tensor, "labeling 4"]:
        named = dict(zip(NAMES, cluster_figures(x, labelings).T, strict=True))
        return torch.stack(
            [
                1.0 / (1.0 + named["davies_bouldin"]),
                1.0 - 1.0 / (1.0 + named["dunn"]),
                1.0 / (1.0 + named["xie_beni"]),
                named["eta2"],
            ],
            1,
        )


alignment_quality = as_function(AlignmentQuality, "label")
