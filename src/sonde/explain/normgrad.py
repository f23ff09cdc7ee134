"""Each position's term in the weight gradient of an identity layer at the site.

An identity layer is imagined at a site; the gradient of the objective at its weights is a sum over
places, and the size of a place's term is the map. ``ClassSensitivity`` asks whether such maps
change with the class, ``MetaSaliency`` draws them after a step of learning.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, unfold

from sonde.core.errors import InputError, SiteError
from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.explain._correlation import pearson
from sonde.explain._judging import require_method, standard_error
from sonde.explain.attribution import Attribution, Attributor, Parts, sites_named
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction

Kind = Literal["bias", "scaling", "conv1x1", "conv3x3", "own"]
How = Literal["norm", "sum", "positive_norm", "max"]
Slopes = Float[Tensor, "row group unit place"]
Given = Float[Tensor, "row group part place"]


@final
@dataclass(frozen=True)
class NormGrad(Attributor):
    """Size of each position's term in the weight gradient of a layer at the site.

    With the state ``h`` and the gradient ``g`` at a place, the term is ``g`` for a bias, ``h g``
    for a scaling and ``g h'`` for a convolution of 1 x 1; a convolution of 3 x 3 has the patch
    around the place as ``h``. ``own`` is the convolution or linear layer whose output is the site,
    with its true input. No outer product is formed: the norm of ``g h'`` is ``|g| |h|``.

    Range        [0, inf), objective per unit of weight; ``sum`` and ``max`` are signed.
    Cost         one forward and backward.
    Assumes      a site that keeps places; early ones give maps that hardly depend on the class
                 (``ClassSensitivity``).

    Parameters
    ----------
    layer : {"bias", "scaling", "conv1x1", "conv3x3", "own"}, default="conv1x1"
        The layer at the site whose weight gradient is measured.
    how : {"norm", "sum", "positive_norm", "max"}, default="norm"
        How the entries of a place's term become one number; ``positive_norm`` sets negative entries
        to 0. The sum of a scaling is gradient times activation.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    >>> NormGrad("own").explain(net, torch.ones(1, 1, 3, 3), site="0").value.shape
    torch.Size([1, 3, 3])

    References
    ----------
    rebuffi2020normgrad
    """

    layer: Kind = "conv1x1"
    how: How = "norm"
    paper: ClassVar[str] = "rebuffi2020normgrad"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"layer": "scaling", "how": "sum"})

    def __post_init__(self) -> None:
        check_ranges(self, layer=get_args(Kind), how=get_args(How))

    @property
    def signed(self) -> bool:
        """True for ``sum`` and ``max``."""
        return self.how in ("sum", "max")

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        _, gradient, reached = function.gradient(function.value, objective.of)
        norms = _aggregated(*_factors(function, gradient, self.layer), self.how)
        axis = function.feature_axis
        size = [n for i, n in enumerate(function.value.shape) if i != axis]
        return Parts(norms.reshape(size), is_reached=reached)


@final
@dataclass(frozen=True)
class MetaSaliency(Attributor):
    """An attribution after one gradient step of a layer at the site towards the target.

    The weights of a layer that does nothing move by ``step`` times the gradient of the target's
    log-probability, for each example alone; then the inner method runs on the states that this
    layer returns. No weight of the model changes.

    Range        that of the inner method.
    Cost         one forward and backward more than the inner method.
    Assumes      a step small enough for the model to stay what it is: sweep it.
    Differs      from the paper, which steps on the weights of the model, one picture at a time.

    Parameters
    ----------
    method : Attributor, optional
        By default ``NormGrad``.
    layer : {"bias", "scaling", "conv1x1"}, default="conv1x1"
        The layer that learns.
    step : float, default=1e-3
        Size of the gradient step, at least 0.

    References
    ----------
    rebuffi2020normgrad
    """

    method: Attributor = field(default_factory=NormGrad)
    layer: Literal["bias", "scaling", "conv1x1"] = "conv1x1"
    step: float = 1e-3
    paper: ClassVar[str] = "rebuffi2020normgrad"

    def __post_init__(self) -> None:
        check_ranges(self, layer=("bias", "scaling", "conv1x1"), step=">= 0")

    @property
    def signed(self) -> bool:
        """True if the inner method is signed."""
        return self.method.signed

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        log_prob = Objective("log_prob", output=objective.objective.output)
        is_own = objective.objective.kind in ("answer", "output")
        learned = (
            objective
            if is_own
            else FixedObjective(log_prob, objective.target, None, objective.place)
        )
        _, gradient, _ = function.slope(learned.of)
        g, h = _factors(function, gradient, self.layer)
        moved = torch.einsum("ngop,ngip,ngiq->ngoq", g, h, h).flatten(1, 2)
        axis = function.feature_axis
        back = function.value.movedim(axis, 1)
        values = function.value + self.step * moved.reshape(back.shape).movedim(1, axis)
        after = copy.copy(function)
        after.value, after.outputs = values.detach(), function.run(values.detach())
        return self.method._parts(after, objective)


@final
@dataclass(frozen=True)
class ClassSensitivity(Judge):
    """Correlation over positions between the maps of the most and the least probable class.

    Range        [-1, 1]; 1 = the map is the same whatever the class, 0 or below = it depends on it.
    Cost         two attributions.
    Assumes      two classes or more.

    Examples
    --------
    >>> from sonde.explain import GradTimesInput
    >>> net = nn.Linear(5, 2, bias=False)
    >>> net.weight.data[1] = -net.weight.data[0]
    >>> round(ClassSensitivity().judge(net, torch.randn(4, 5), GradTimesInput()).value, 6)
    -1.0

    References
    ----------
    rebuffi2020normgrad
    """

    paper: ClassVar[str] = "rebuffi2020normgrad"

    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Attributor,
        *,
        site: Pattern = INPUT,
        kind: Literal["logit", "log_prob", "prob"] = "logit",
    ) -> Result:
        """Return the mean correlation over examples.

        Parameters
        ----------
        model, inputs, site : as for the attribution
        explanation : Attributor
            The method itself, which is asked for both classes.
        kind : {"logit", "log_prob", "prob"}, default="logit"
            Of the objective.
        """
        require_method("ClassSensitivity", explanation)
        function = SiteFunction(model, inputs, site)
        fixed = Objective(kind).at(function)
        if fixed.objective.kind == "output":
            raise InputError(
                "ClassSensitivity: expected a model of two classes or more, got one output."
            )
        logits = Objective(kind)._logits(function.outputs).detach()
        rows = torch.arange(len(logits), device=logits.device)
        least = (logits if fixed.place is None else logits[rows, fixed.place]).argmin(1)
        maps = [
            explanation.at(function, Objective(kind, target=target))
            for target in (fixed.target, least)
        ]
        flat = [one.per_place.flatten(1).cpu() for one in maps]
        each = pearson(flat[0], flat[1])
        return Result(
            value=float(each.mean()),
            se=standard_error(each),
            n=len(each),
            range=(-1.0, 1.0),
            direction="lower",
            conventions={
                "method": maps[0].conventions["method"],
                **sites_named(function),
                "classes": "the most likely class against the least likely class",
                "correlation": "Pearson over places",
            },
        )


def combined(
    maps: Sequence[Attribution],
    size: tuple[int, int],
    how: Literal["product", "mean", "geometric"] = "product",
) -> Float[Tensor, "row height width"]:
    """Combine the maps of several layers into one map of the size of the image.

    Each map is grown to the picture and scaled to [0, 1] for each example; constant maps become 0.

    Parameters
    ----------
    maps : sequence of Attribution
        Over (row, h, w), of the same examples.
    size : (int, int)
        Height and width of the image.
    how : {"product", "mean", "geometric"}, default="product"
        How maps are joined at each pixel: by product, mean or geometric mean.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 2), nn.Flatten())
    >>> x = torch.randn(3, 1, 4, 4)
    >>> combined([NormGrad().explain(net, x, site=s) for s in ("0", "1")], (4, 4)).shape
    torch.Size([3, 4, 4])
    """
    if not maps or any(torch.as_tensor(one.value).ndim != 3 for one in maps):
        raise InputError("combined: expected one map or more, each (row, h, w).")
    scaled: list[Tensor] = []
    for one in maps:
        value = torch.as_tensor(one.value)[:, None]
        grown = interpolate(value, list(size), mode="bilinear", align_corners=False)[:, 0]
        low, high = grown.amin((1, 2), keepdim=True), grown.amax((1, 2), keepdim=True)
        wide = high - low
        scaled.append(torch.where(wide > 0, (grown - low) / torch.where(wide > 0, wide, 1.0), 0.0))
    every = torch.stack(scaled)
    if how == "mean":
        return every.mean(0)
    product = every.prod(0)
    return product if how == "product" else product ** (1.0 / len(scaled))


def _factors(function: SiteFunction, gradient: Tensor, layer: Kind) -> tuple[Slopes, Given]:
    """Return the gradient and the input of each position, whose outer products are the terms."""
    if function.value.ndim < 3:
        raise InputError(
            "NormGrad: expected a site that keeps spatial or token positions, of shape (row, "
            f"channel, h, w) or (row, token, unit), got {tuple(function.value.shape)} at "
            f"{function.site}. Name a layer."
        )
    axis = function.feature_axis
    g, h = (x.movedim(axis, 1).flatten(2) for x in (gradient, function.value))
    if layer == "own":
        return _own(function, g)
    if layer in ("bias", "scaling"):
        h = torch.ones_like(h) if layer == "bias" else h
        return g.unsqueeze(2), h.unsqueeze(2)
    if layer == "conv3x3":
        if function.value.ndim != 4:
            raise InputError(
                f"NormGrad: conv3x3 needs maps (row, channel, h, w), got "
                f"{tuple(function.value.shape)} at {function.site}. Take conv1x1."
            )
        h = unfold(function.value, 3, padding=1)
    return g.unsqueeze(1), h.unsqueeze(1)


def _own(function: SiteFunction, g: Float[Tensor, "row out place"]) -> tuple[Slopes, Given]:
    """Return the factors of the layer whose output is read."""
    module, x = function.input_of_site()
    if isinstance(module, nn.Linear):
        return g.unsqueeze(1), x.movedim(-1, 1).flatten(2).unsqueeze(1)
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        raise SiteError(
            "NormGrad: expected the output of a linear layer or of a 2-d convolution with "
            f"numeric padding for 'own', got {type(module).__name__} at {function.site}. Use "
            "conv1x1."
        )
    if module.padding_mode != "zeros":
        raise SiteError(
            f"NormGrad: expected zero padding, got padding_mode={module.padding_mode!r} at "
            f"{function.site}. Use conv1x1."
        )
    h = unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    return g.unflatten(1, (module.groups, -1)), h.unflatten(1, (module.groups, -1))


def _aggregated(g: Slopes, h: Given, how: How) -> Float[Tensor, "row place"]:
    """Return one number for each position's outer products, without computing the products."""
    if how == "sum":
        return (g.sum(2) * h.sum(2)).sum(1)
    if how == "max":
        ends = [a * b for a in (g.amin(2), g.amax(2)) for b in (h.amin(2), h.amax(2))]
        return torch.stack(ends).amax(0).amax(1)
    if how == "norm":
        return (g.square().sum(2) * h.square().sum(2)).sum(1).sqrt()
    above, below = ([x.relu().square().sum(2) for x in (s * g, s * h)] for s in (1, -1))
    return (above[0] * above[1] + below[0] * below[1]).sum(1).sqrt()
