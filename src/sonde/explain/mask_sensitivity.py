"""Test whether a model answers from the object or from the background."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sonde.core.chart import Chart, marks
from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.explain.baseline import Baseline
from sonde.explain.objective import Objective
from sonde.metrics import Metric, auroc
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import SiteFunction

CONDITIONS = ("full", "region only", "region removed", "box removed", "other box removed")
ROWS = 256
"""Pictures of one forward."""
Pictures = Float[Tensor, "row channel height width"]
Regions = Bool[Tensor, "row height width"]


@final
@dataclass(frozen=True, kw_only=True)
class MaskSensitivityResult(Result):
    """Area under the ROC curve of the classes under each condition, with 95 % intervals.

    ``value`` is the area with the box of the region removed. ``cosine`` is the mean cosine between
    the states at a site and those of the whole picture, both less the mean state of the whole
    pictures; NaN if no site is named.
    """

    title: ClassVar[str] = "Area under the ROC curve with and without the region"
    conditions: tuple[str, ...]
    auroc: Float[Tensor, "condition"]
    low: Float[Tensor, "condition"]
    high: Float[Tensor, "condition"]
    accuracy: Float[Tensor, "condition"]
    cosine: Float[Tensor, "condition"]

    @property
    def has_shortcut(self) -> bool:
        """True if classes are predicted without the object better than by chance."""
        return float(self.low[CONDITIONS.index("box removed")]) > 0.5

    def chart(self) -> Chart:
        """Return the areas with their intervals."""
        columns = (self.auroc.tolist(), self.low.tolist(), self.high.tolist())
        named = zip(self.conditions, *columns, strict=True)
        rows = [{"condition": c, "auroc": v, "low": a, "high": b} for c, v, a, b in named]
        return marks(self.title, rows, "auroc", "condition", low="low", high="high")


@final
@dataclass(frozen=True)
class MaskSensitivity(Judge):
    """Accuracy of a model without the region of the object, and with only this region.

    Five conditions: the whole picture; the region alone; without the region; without the box around
    the region, which hides the object's shape; without a box of the same size elsewhere. A model
    that tells classes without the box uses a shortcut.

    Range        [0, 1]; .5 = chance; higher = more of the answer lies outside the object.
    Cost         five forwards.
    Assumes      a region for each picture; classes that the shape and place of a box do not tell.

    Parameters
    ----------
    baseline : Baseline, optional
        What stands at places that are taken away; by default the mean of each channel over
        all pictures.
    seed : int, default=0
        Seed of the place of the other box, and of the intervals.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x, label = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> region = torch.zeros(20, 4, 4, dtype=torch.bool)
    >>> region[:, 1:3, 1:3] = True
    >>> MaskSensitivity().judge(net, x, region, labels=label).auroc.shape
    torch.Size([5])

    References
    ----------
    sourget2025maskoftruth
    """

    baseline: Baseline = field(default_factory=lambda: Baseline("mean"))
    seed: int = 0
    paper: ClassVar[str] = "sourget2025maskoftruth"

    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Bool[Tensor, "row3 height2 width2"],
        *,
        labels: Int[Tensor, "row2"],
        site: Pattern | None = None,
    ) -> MaskSensitivityResult:
        """Return the areas of all conditions.

        Parameters
        ----------
        model : Model or nn.Module
            Called with pictures alone.
        inputs : Float[Tensor, "row channel height width"]
        explanation : Bool[Tensor, "row height width"]
            The region that should tell the classes: where the object is.
        labels : Int[Tensor, "row"]
            Classes as the model numbers them; two or more of them.
        site : pattern, optional
            The site whose states are compared.

        Raises
        ------
        ShapeError
            If pictures, regions and labels do not fit.
        InputError
            If the inputs are no pictures, a picture has no region, or there is one class.
        """
        images, region = inputs, explanation
        if not isinstance(images, Tensor) or images.ndim != 4:
            kind = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images)
            raise InputError(
                "MaskSensitivity: expected a single input of pictures (row, channel, height, "
                f"width), got {kind}. Wrap a model of several inputs in a module that "
                "supplies the other inputs."
            )
        if images.shape[2:] != region.shape[1:] or not len(images) == len(region) == len(labels):
            raise ShapeError(
                "MaskSensitivity: expected a region of the pictures' height and width and a label "
                f"for each picture, got pictures {tuple(images.shape)}, regions "
                f"{tuple(region.shape)} and {len(labels)} labels."
            )
        empty = (~region.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise InputError(
                f"MaskSensitivity: expected a region in each picture, got none in {len(empty)} of "
                f"them (first: {empty[0]}). Leave these out."
            )
        classes = torch.unique(labels).tolist()
        if len(classes) < 2:
            raise InputError(f"MaskSensitivity: expected two classes or more, got {classes}.")
        base = self._base(model, images)
        columns: dict[str, list[Any]] = {"areas": [], "accuracy": [], "cosine": []}
        whole: Tensor | None = None
        for gone in _gone(region, self.seed):
            probs, states = _answers(model, torch.where(gone[:, None], base, images), site)
            whole = states if whole is None else whole
            columns["areas"].append(self._area(probs, labels, classes))
            columns["accuracy"].append(float((probs.argmax(1) == labels.cpu()).double().mean()))
            cosine = np.nan if states is None or whole is None else _cosine(states, whole)
            columns["cosine"].append(cosine)
        area, low, high = torch.tensor(columns["areas"], dtype=torch.float64).T
        return MaskSensitivityResult(
            value=float(area[CONDITIONS.index("box removed")]),
            null=0.5,
            n=len(images),
            range=(0.0, 1.0),
            direction="higher",
            conventions={
                "method": repr(self),
                "baseline": str(self.baseline),
                "masking": "replaced by the baseline",
                "classes": "mean of each class against the others" if len(classes) > 2 else "two",
                "site": "none" if site is None else str(site),
                "se": "an interval instead (low, high)",
            },
            conditions=CONDITIONS,
            auroc=area,
            low=low,
            high=high,
            accuracy=torch.tensor(columns["accuracy"], dtype=torch.float64),
            cosine=torch.tensor(columns["cosine"], dtype=torch.float64),
        )

    def _base(self, model: Model | nn.Module, images: Pictures) -> Pictures:
        """Return the baseline that replaces removed positions, for all images together."""
        if self.baseline.kind == "mean":
            return images.mean((0, 2, 3))[None, :, None, None].expand_as(images)
        parts = images.split(ROWS)
        return torch.cat([self.baseline.at(SiteFunction(model, part)) for part in parts])

    def _area(
        self, probs: Float[Tensor, "row class"], labels: Tensor, classes: list[int]
    ) -> tuple[float, float, float]:
        """Return the area with its interval, averaged over classes if there are several."""
        positive = classes[1:] if len(classes) == 2 else classes
        one: list[Metric] = [
            auroc(probs[:, c].numpy(), (labels == c).cpu().numpy(), resamples=200, seed=self.seed)
            for c in positive
        ]
        columns = zip(*((m.value, m.low, m.high) for m in one), strict=True)
        value, low, high = (float(np.mean(column)) for column in columns)
        return value, low, high


def _gone(region: Regions, seed: int) -> list[Regions]:
    """Return the positions that are removed under each condition."""
    draw = np.random.default_rng(seed)
    box, other = torch.zeros_like(region), torch.zeros_like(region)
    height, width = region.shape[1:]
    for i, one in enumerate(region):
        lines, columns = (one.any(axis).nonzero().flatten() for axis in (1, 0))
        top, left = int(lines[0]), int(columns[0])
        tall, wide = int(lines[-1]) - top + 1, int(columns[-1]) - left + 1
        box[i, top : top + tall, left : left + wide] = True
        places = [(y, x) for y in range(height - tall + 1) for x in range(width - wide + 1)]
        shared = [max(0, tall - abs(y - top)) * max(0, wide - abs(x - left)) for y, x in places]
        apart = [place for place, n in zip(places, shared, strict=True) if n == min(shared)]
        y, x = apart[int(draw.integers(len(apart)))]
        other[i, y : y + tall, x : x + wide] = True
    return [torch.zeros_like(region), ~region, region, box, other]


def _answers(
    model: Model | nn.Module, images: Pictures, site: Pattern | None
) -> tuple[Float[Tensor, "row class"], Tensor | None]:
    """Return the class probabilities, and the states at a site."""
    probs, states = [], []
    for part in images.split(ROWS):
        function = SiteFunction(model, part) if site is None else SiteFunction(model, part, site)
        logits = Objective()._logits(function.outputs).detach()
        probs.append(logits.double().softmax(1).cpu())
        states.append(function.value.flatten(1))
    return torch.cat(probs), None if site is None else torch.cat(states)


def _cosine(states: Tensor, whole: Tensor) -> float:
    centre = whole.double().mean(0)  # common to all pictures; it would make all states parallel
    return float(cosine_similarity(states.double() - centre, whole.double() - centre).mean())
