"""An input that maximises a unit, beside the real inputs with the largest activations.

A picture made by ascent shows what a unit answers to, not what it is used for: read the achieved
value against real rows, and take ``exemplars`` first.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.streams.site_function import INPUT, SiteFunction, Varied


@final
@dataclass(frozen=True, kw_only=True)
class ActivationMaxResult(Result):
    """``value`` is the activation reached; ``null`` is the largest activation on a real input.

    ``found`` is the input, or the embeddings of tokens, that achieves it; several inputs are one
    row of numbers, and ``parts`` has each by its name. ``natural`` are the real inputs'
    activations, ``best`` the index of the largest, ``percentile`` the share of real inputs below
    what was achieved. ``tokens``, of a model of tokens, are those with the nearest embeddings, and
    ``token_value`` what these tokens themselves achieve.
    """

    found: Float[Tensor, "..."]
    natural: Float[Tensor, "row"]
    best: int
    percentile: float
    losses: Float[Tensor, "step"]
    tokens: Int[Tensor, "token"] | None = None
    token_value: float | None = None
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@final
@dataclass(frozen=True)
class ActivationMax(Explainer):
    """Largest activation of one unit that gradient ascent on the input finds.

    Ascends the unit's mean over places by Adam, or by projected steps within a ball of radius
    ``radius``. ``l2`` times the mean square and ``tv`` times the mean squared step between
    neighbouring pixels are subtracted. A model of tokens is ascended in the space of embeddings.

    Range        (-inf, inf), in the unit's own; higher = further.
    Cost         ``steps`` forwards and backwards of one input; one forward of the real ones.
    Assumes      a differentiable path from the input; what is found may look like no real input.

    Parameters
    ----------
    steps : int, default=256
        Number of steps of the ascent.
    rate : float, default=0.05
        Step size, in standard deviations of the real inputs.
    l2 : float, default=0.0
        Weight of the mean square of the distance from the mean real input.
    tv : float, default=0.0
        Weight of squared differences of neighbouring pixels.
    jitter : int, default=1
        Largest number of pixels that pictures are rolled by at each step.
    radius : float or None, default=None
        Largest norm of the input; None keeps each channel within its range over the real inputs.
    seed : int, default=0
        Seed of the start and of the jitter.

    Examples
    --------
    >>> net = nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, 4.0]])
    >>> found = ActivationMax(radius=2.0).explain(net, torch.ones(4, 2), site="", unit=0)
    >>> round(found.value, 3), found.null
    (10.0, 7.0)

    References
    ----------
    erhan2009visualizing, olah2017feature
    """

    steps: int = 256
    rate: float = 0.05
    l2: float = 0.0
    tv: float = 0.0
    jitter: int = 1
    radius: float | None = None
    seed: int = 0
    paper: ClassVar[str] = "erhan2009visualizing"

    def __post_init__(self) -> None:
        bad_radius = self.radius is not None and not self.radius > 0
        check_ranges(self, steps=">= 1", rate="> 0", l2=">= 0", tv=">= 0", jitter=">= 0")
        if bad_radius:
            raise InputError(f"ActivationMax: expected a radius above 0, got {self.radius}.")

    def explain(
        self, model: Model | nn.Module, inputs: Any, *, site: Pattern, unit: int
    ) -> ActivationMaxResult:
        """Return the input that maximises a unit.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Tensor, tuple, dict or InputBatch
            Real inputs: their scale bounds the search, and the result is compared with them.
        site : pattern
            A module's output.
        unit : int
            Index along its features.

        Raises
        ------
        InputError
            If there is no such unit, or the unit does not depend on the input.
        """
        at = SiteFunction(model, inputs, INPUT)
        unit_of = _UnitOf(at, site, unit)
        with torch.no_grad():
            natural = unit_of(at.value)
        start = at.value.mean(0, keepdim=True)
        spread = at.joined([_spread(part.value) for part in at.parts])
        draw = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(start.shape, generator=draw).to(start)
        ascended, path = self._ascended(unit_of, start + 0.1 * spread * noise, spread, draw)
        with torch.no_grad():
            value = float(unit_of(_repeated(ascended, at.n))[0])
        tokens = _nearest(at, ascended) if at.site != INPUT else None
        best = int(natural.argmax())
        return ActivationMaxResult(
            value=value,
            null=float(natural[best]),
            n=at.n,
            direction="higher",
            conventions={
                "method": repr(self),
                "site": unit_of.site,
                "input": ", ".join(at.inputs) or at.site,
                "null": "the largest on a real input",
                "se": "none: a single input",
            },
            found=ascended[0],
            natural=natural,
            best=best,
            percentile=float((natural < value).double().mean()),
            losses=path,
            tokens=None if tokens is None else tokens[0],
            token_value=None if tokens is None else float(unit_of(tokens[1])[0]),
            parts={name: x[0] for name, x in zip(at.inputs, at.split(ascended), strict=False)},
        )

    @torch.enable_grad()
    def _ascended(
        self, unit_of: "_UnitOf", x: Tensor, spread: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Float[Tensor, "step"]]:
        """Return the best input found by gradient ascent, and the activation at each step."""
        at, real = unit_of.at, unit_of.at.value
        centre = real.mean(0, keepdim=True)
        bounds = [_bounds(part) for part in at.parts]
        low, high = (at.joined([one[i] for one in bounds]) for i in (0, 1))
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        path: list[float] = []
        best, best_value = x, -torch.inf
        for step in range(1, self.steps + 1):
            point = x.detach().requires_grad_(True)
            rolled = at.joined([_rolled(x, self.jitter, draw) for x in at.split(point)])
            value = unit_of(_repeated(rolled, len(real)))[0]
            if not value.requires_grad:
                raise InputError(
                    f"ActivationMax: unit {unit_of.unit} of {unit_of.site} does not depend on the "
                    "input. Name another site."
                )
            price = self.l2 * (point - centre).square().mean() + self.tv * sum(
                map(_roughness, at.split(point))
            )
            (slope,) = torch.autograd.grad(value - price, point)
            path.append(float(value.detach()))
            if path[-1] - float(price.detach()) > best_value:
                best, best_value = x, path[-1] - float(price.detach())
            if self.radius is None:
                first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope.square()
                size = (second / (1 - 0.99**step)).sqrt() + 1e-12
                x = x + self.rate * spread * (first / (1 - 0.9**step)) / size
                x = torch.minimum(torch.maximum(x, low), high)
            else:
                x = x + self.radius * slope / slope.norm().clamp(min=1e-30)
                x = x * (self.radius / x.norm()).clamp(max=1.0)
        with torch.no_grad():
            last = float(unit_of(_repeated(x, len(real)))[0])
            price = self.l2 * (x - centre).square().mean() + self.tv * sum(
                map(_roughness, at.split(x))
            )
        best = x if last - float(price) >= best_value else best
        return best.detach(), torch.tensor(path)


class _UnitOf:
    """Activation of a unit, averaged over positions, as a function of the input."""

    def __init__(self, at: SiteFunction, site: Pattern, unit: int) -> None:
        self.at, self.unit = at, unit
        if site == "":
            self._module, self.site = at.module, "the output"
        else:
            sites = resolve(at.module, site)
            if len(sites) != 1 or sites[0].port != "out":
                raise SiteError(
                    f"ActivationMax: expected the output of one module, got {str(site)!r}, which "
                    f"names {len(sites)}. Name one of them."
                )
            self._module, self.site = ModuleNames(at.module).modules[sites[0].path], str(sites[0])
        with torch.no_grad():
            state = self._state(at.value)
        self._axis = 1 if state.ndim == 4 else state.ndim - 1
        if not 0 <= unit < state.shape[self._axis]:
            raise InputError(
                f"ActivationMax: expected a unit in 0..{state.shape[self._axis] - 1} of "
                f"{self.site}, got {unit}."
            )

    def __call__(self, values: Tensor) -> Float[Tensor, "row"]:
        """Return the activation of each row."""
        return self._state(values).select(self._axis, self.unit).reshape(len(values), -1).mean(1)

    def _state(self, values: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def note(output: Any) -> None:
            leaf = find(output, None)
            if leaf is not None:
                seen.append(leaf)

        with (
            Session(self.at.module, outputs=[(self._module, note)], with_grad=True),
            torch.set_grad_enabled(values.requires_grad),
        ):
            self.at.run(values)
        if len(seen) != 1:
            raise SiteError(
                f"ActivationMax: expected {self.site} to run once with a floating-point output, "
                f"but it ran {len(seen)} times. Name another site."
            )
        state = seen[0]
        return state[:, None] if state.ndim == 1 else state


def _spread(x: Tensor) -> Tensor:
    """Return the standard deviation of all entries (1 if it is 0), in the shape of one row."""
    return torch.full_like(x[:1], float(x.std().nan_to_num()) or 1.0)


def _bounds(part: Varied) -> tuple[Tensor, Tensor]:
    """Return the range of each channel over the real inputs, for each entry of one row."""
    x, kept = part.value, part.axis
    rest = [i for i in range(x.ndim) if i != kept]
    low, high = x.amin(rest, keepdim=True), x.amax(rest, keepdim=True)
    return low.expand_as(x[:1]), high.expand_as(x[:1])


def _repeated(x: Tensor, n: int) -> Tensor:
    """Return one input repeated ``n`` times, to match the rows of the call's other inputs."""
    return x.expand(n, *x.shape[1:])


def _rolled(x: Tensor, jitter: int, draw: torch.Generator) -> Tensor:
    if x.ndim != 4 or not jitter:
        return x
    down, right = torch.randint(-jitter, jitter + 1, (2,), generator=draw).tolist()
    return x.roll((down, right), dims=(2, 3))


def _roughness(x: Tensor) -> Tensor:
    if x.ndim != 4:
        return x.new_zeros(())
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()


def _nearest(at: SiteFunction, found: Tensor) -> tuple[Int[Tensor, "token"], Tensor] | None:
    """Return the tokens whose embeddings have the largest cosine similarity, and these embeddings.

    None if the module that is fed the tokens has no weight with a row for each.
    """
    module = ModuleNames(at.module).modules[Site.parse(at.site).path]
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None or weight.ndim != 2 or weight.shape[1] != found.shape[-1]:
        return None
    table = weight.detach().to(found)
    unit = nn.functional.normalize(table, dim=1)
    tokens = (nn.functional.normalize(found[0], dim=-1) @ unit.T).argmax(-1)
    with torch.no_grad():  # the module itself: a table may scale its rows
        embedded = module(tokens).to(found)
    return tokens, _repeated(embedded[None], at.n)
