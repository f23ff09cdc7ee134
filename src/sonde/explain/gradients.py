"""Attribution by gradients: at a point, along a path to a baseline, or around the point.

``Saliency`` and ``GradTimesInput`` look at the point alone and miss what is saturated there;
``IntegratedGradients`` adds up to the rise from the baseline; ``SmoothGrad`` averages noise away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.ranges import check_ranges
from sonde.explain.attribution import Attributor, Parts
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction, Varied

LEAST_STEPS = 4
"""Fewest steps by which baselines are compared."""
MOST_ROWS = 256
"""Rows per forward and backward pass, so that memory does not grow with the number of steps."""


@final
@dataclass(frozen=True)
class Saliency(Attributor):
    """Absolute gradient at each entry: the effect of a small step on the objective.

    Range        [0, inf), objective per unit of the site; unsigned.
    Cost         one forward and backward.
    Assumes      nothing; what is saturated gets 0.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, -2.0]])
    >>> Saliency().explain(net, torch.ones(1, 2)).value.tolist()
    [[3.0, 2.0]]

    References
    ----------
    simonyan2014saliency
    """

    at_point: ClassVar[bool] = True
    paper: ClassVar[str] = "simonyan2014saliency"

    @property
    def signed(self) -> bool:
        """False: a magnitude has no sign."""
        return False

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        _, gradient, reached = function.slope(objective.of)
        return Parts(gradient.abs(), is_reached=reached)


@final
@dataclass(frozen=True)
class GradTimesInput(Attributor):
    """Entry times gradient; at a hidden site, activation times gradient.

    Range        objective; signed.
    Cost         one forward and backward.
    Assumes      nothing; adds up to the objective for a net of ReLUs without biases.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, -2.0]])
    >>> GradTimesInput().explain(net, torch.tensor([[1.0, 5.0]])).value.tolist()
    [[3.0, -10.0]]

    References
    ----------
    shrikumar2017deeplift
    """

    at_point: ClassVar[bool] = True
    paper: ClassVar[str] = "shrikumar2017deeplift"

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        _, gradient, reached = function.slope(objective.of)
        return Parts(gradient * function.value, is_reached=reached)


@final
@dataclass(frozen=True)
class IntegratedGradients(Attributor):
    """Mean gradient on the straight path from the baseline, times the difference.

    ``(x_i - b_i) int_0^1 df/dx_i(b + t (x - b)) dt`` with Gauss-Legendre nodes. At a hidden site
    the way runs through the states of that site, and the model goes on from there.

    Range        objective; signed; adds up to ``f(x) - f(b)``: ``gap`` is what is missing, with the
                 flag ``incomplete`` above 5 %.
    Cost         ``steps`` forwards and backwards, at most 256 rows at once.
    Assumes      a baseline that says nothing; results of two baselines do not compare.

    Parameters
    ----------
    steps : int, default=50
        Nodes; exact where the objective is a polynomial of degree ``2 steps`` along the way.
    baseline : Baseline, optional
        By default zero, of pictures a blur; of tokens zero, the mean embedding or noise like
        embeddings, whichever leaves the smallest gap with a fifth of the steps. Close to zero, a
        norm makes gradients so large that no number of steps adds up.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> found = IntegratedGradients(baseline=Baseline("zero")).explain(net, torch.ones(1, 2))
    >>> torch.allclose(found.value, net.weight)
    True

    References
    ----------
    sundararajan2017ig
    """

    steps: int = 50
    baseline: Baseline = field(default_factory=Baseline)
    adds_up: ClassVar[bool] = True
    paper: ClassVar[str] = "sundararajan2017ig"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 4},)

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1")

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        named = self.baseline.candidates(function)
        if len(named) == 1:
            return self._along(function, objective, next(iter(named.values())), self.steps)
        best = self._most_complete(function, objective, [*named.values()])
        rows = best.reshape(-1, *[1] * (function.value.ndim - 1)).to(function.value.device)
        base = sum(torch.where(rows == i, one, 0.0) for i, one in enumerate(named.values()))
        parts = self._along(function, objective, torch.as_tensor(base), self.steps)
        chosen = [name for i, name in enumerate(named) if bool((best == i).any())]
        words = f"{' or '.join(chosen)}, by the smallest gap of {len(named)} baselines"
        return replace(parts, baseline=words)

    def _most_complete(
        self, function: SiteFunction, objective: FixedObjective, bases: Sequence[Tensor]
    ) -> Int[Tensor, "row"]:
        """Return for each example the baseline whose parts miss least of the rise."""
        high = objective.of(function.outputs).detach().double().cpu()
        missed: list[Tensor] = []
        for base in bases:
            parts = self._along(function, objective, base, max(LEAST_STEPS, self.steps // 5))
            low = torch.zeros_like(high) if parts.base is None else parts.base.double().cpu()
            rise = high - low
            total = parts.value.double().flatten(1).sum(1).cpu()
            missed.append((rise - total).abs() / rise.abs().clamp(min=1e-6))
        return torch.stack(missed).nan_to_num(torch.inf).argmin(0)

    def _along(
        self, function: SiteFunction, objective: FixedObjective, base: Tensor, steps: int
    ) -> Parts:
        """Return the parts along the straight line from a baseline."""
        way = function.value - base
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        total, reached = torch.zeros_like(way), False
        for part in _chunks(steps, function.n):
            t = _column((nodes[part] + 1.0) / 2.0, way)
            w = _column(weights[part] / 2.0, way)
            points = base[:, None] + t * way[:, None]
            k = len(t)
            _, gradient, reached = function.gradient(
                points.flatten(0, 1), objective.repeated(k).of, k
            )
            total += (w * gradient.unflatten(0, (function.n, k))).sum(1)
        with torch.no_grad():
            low = objective.of(function.run(base)).detach()
        return Parts(total * way, low, reached)


@final
@dataclass(frozen=True)
class ExpectedGradients(Attributor):
    """Integrated gradients averaged over baselines drawn from given rows.

    Range        objective; signed; adds up to the rise from the mean objective of the references,
                 up to the noise of the draws.
    Cost         ``n`` forwards and backwards.
    Assumes      references that stand for what could have been there.

    Parameters
    ----------
    references : Tensor (row, ...)
        Values like those of the site, a row for each reference. For several inputs, rows of their
        numbers, one input after another.
    n : int, default=200
        Draws; the error falls as ``1 / sqrt(n)``.
    seed : int, default=0
        Seed of the draws of baselines and of points on the way.

    References
    ----------
    erion2021expected
    """

    references: Tensor = field(repr=False)
    n: int = 200
    seed: int = 0
    paper: ClassVar[str] = "erion2021expected"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()

    def _compared_with(self, function: SiteFunction) -> str:
        return f"{len(self.references)} references"

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        generator = torch.Generator().manual_seed(self.seed)
        # The same draws for every example, however many steps are taken at once: what it gets does
        # not hang on its batch.
        every = torch.randint(len(self.references), (self.n,), generator=generator)
        ways = torch.rand(self.n, generator=generator)
        x = function.value
        if self.references.shape[1:] != x.shape[1:]:
            raise ShapeError(
                f"ExpectedGradients: expected references of shape {('row', *x.shape[1:])}, got "
                f"{tuple(self.references.shape)} at {', '.join(function.inputs) or function.site}."
            )
        total, reached = torch.zeros_like(x), False
        for part in _chunks(self.n, function.n):
            k = len(every[part])
            t = ways[part].to(x).reshape(1, k, *[1] * (x.ndim - 1))
            base = self.references[every[part]].to(x)[None]
            points = base + t * (x[:, None] - base)
            _, gradient, reached = function.gradient(
                points.flatten(0, 1), objective.repeated(k).of, k
            )
            total += (gradient.unflatten(0, (function.n, k)) * (x[:, None] - base)).sum(1)
        return Parts(total / self.n, is_reached=reached)


@final
@dataclass(frozen=True)
class SmoothGrad(Attributor):
    """Mean gradient over noisy copies of the point.

    Range        objective per unit of the site; signed for ``mean``, else unsigned.
    Cost         ``n`` forwards and backwards.
    Assumes      noise of a size that the model bears.

    Parameters
    ----------
    n : int, default=25
        Number of noisy copies.
    sigma : float, default=0.15
        Standard deviation of the noise, in ranges (largest less smallest entry) of each example; of
        several inputs, of each one's own range.
    how : {"mean", "squared", "variance"}, default="mean"
        Mean gradient, mean of its squares, or their variance.
    seed : int, default=0
        Seed of the noise.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> found = SmoothGrad(n=4).explain(net, torch.tensor([[1.0, 2.0]]))
    >>> torch.allclose(found.value, net.weight)
    True

    References
    ----------
    smilkov2017smoothgrad
    """

    n: int = 25
    sigma: float = 0.15
    how: Literal["mean", "squared", "variance"] = "mean"
    seed: int = 0
    paper: ClassVar[str] = "smilkov2017smoothgrad"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"n": 3}, {"n": 3, "how": "variance"})

    def __post_init__(self) -> None:
        check_ranges(self, n=">= 1", how=("mean", "squared", "variance"), sigma="[0, inf)")

    @property
    def signed(self) -> bool:
        """True for ``mean``."""
        return self.how == "mean"

    def _spread(self, part: Varied) -> Tensor:
        """Return the standard deviation of the noise at each entry, estimated without padding."""
        x, mask = part.value, part.mask
        low, high = x, x
        if mask is not None and x.ndim > 2:
            gone = ~mask.to(x.device)[..., None]
            low, high = x.masked_fill(gone, torch.inf), x.masked_fill(gone, -torch.inf)
        spread = self.sigma * (high.flatten(1).amax(1) - low.flatten(1).amin(1)).clamp(min=0.0)
        return spread.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)

    def _noise(self, function: SiteFunction, draw: torch.Generator) -> Tensor:
        """Return standard normal noise that does not depend on an example's batch."""
        noises: list[Tensor] = []
        for part in function.parts:
            shape, mask = part.value.shape, part.mask
            if len(shape) != 3:
                noises.append(torch.randn(1, *shape[1:], generator=draw).expand(shape))
                continue
            seed = int(torch.randint(2**62, (1,), generator=draw))
            own = torch.Generator().manual_seed(seed)
            each = torch.stack([torch.randn(shape[2:], generator=own) for _ in range(shape[1])])
            real = torch.ones(shape[:2]) if mask is None else mask.cpu()
            noises.append(each[(real.long().cumsum(1) - 1).clamp(min=0)])
        return function.joined(noises)

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        x = function.value
        generator = torch.Generator().manual_seed(self.seed)
        spread = function.joined([self._spread(part) for part in function.parts])
        first, second, reached = torch.zeros_like(x), torch.zeros_like(x), False
        for part in _chunks(self.n, function.n):
            k = len(range(*part.indices(self.n)))
            # One after another: the same however many are taken at once, so an example's noise
            # does not hang on its batch.
            noise = [self._noise(function, generator).to(x) * spread for _ in range(k)]
            points = x[:, None] + torch.stack(noise, dim=1)
            _, gradient, reached = function.gradient(
                points.flatten(0, 1), objective.repeated(k).of, k
            )
            each = gradient.unflatten(0, (function.n, k))
            first += each.sum(1)
            if self.how != "mean":
                second += each.square_().sum(1)
        mean, square = first / self.n, second / self.n
        value = {"mean": mean, "squared": square, "variance": square - mean.square()}[self.how]
        return Parts(value, is_reached=reached)


def _chunks(n: int, rows: int) -> list[slice]:
    """Return slices of ``n`` steps that make at most ``MOST_ROWS`` rows of one forward pass."""
    size = max(1, MOST_ROWS // max(rows, 1))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _column(values: Any, like: Tensor) -> Tensor:
    """Return one value for each step, in a shape that broadcasts with (row, step, ...)."""
    column = torch.from_numpy(np.ascontiguousarray(values)).to(like)
    return column.reshape(-1, *[1] * (like.ndim - 1))
