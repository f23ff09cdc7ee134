"""Attribution of the objective to each entry of an input or a state, with its assumptions."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction

RTOL, SMALL = 0.05, 1e-6
ROUNDING = 1e-6
"""Of a difference of two objectives, relative to the largest of the batch."""


@final
@dataclass(frozen=True)
class ExplainedInput:
    """One of several inputs that are explained together.

    Parameters
    ----------
    name : str
    shape : tuple of int
        Without the axis of examples.
    axis : int
        Of features, counted with the axis of examples.
    """

    name: str
    shape: tuple[int, ...]
    axis: int

    @property
    def n_places(self) -> int:
        """Number of tokens, pixels, or entries of a row of numbers."""
        n = math.prod(self.shape)
        return n if len(self.shape) < 2 else n // max(self.shape[self.axis - 1], 1)


@final
@dataclass(frozen=True, kw_only=True)
class Attribution(Result):
    """A number for each entry of the tensor at a site. Positive entries raise the objective.

    ``value`` has the tensor's shape, examples first; maps lack the axis of features. Of a model of
    several inputs it is a row of numbers for each example, one input after another; ``parts`` has
    each input's own in its shape. ``objective`` is the number that is explained, for each row.
    ``gap``, if parts should add up, is the rise from the baseline less their sum. ``feature_axis``
    is the axis of features in ``value``, None if it has no such axis. ``inputs`` are the inputs
    that were explained together, empty if it was one tensor.
    """

    title: ClassVar[str] = "Attribution"
    objective: Float[Tensor, "row"]
    gap: Float[Tensor, "row"] | None = None
    feature_axis: int | None = None
    inputs: tuple[ExplainedInput, ...] = ()

    @property
    def signed(self) -> bool:
        """True if the method can say that something lowers the objective."""
        return bool(self.conventions["signed"])

    @property
    def parts(self) -> dict[str, Tensor]:
        """Attribution of each input by its name; for a single tensor, by its site."""
        value = torch.as_tensor(self.value)
        if not self.inputs:
            return {self.conventions.get("inputs", str(self.conventions["site"])): value}
        pieces = value.split([math.prod(one.shape) for one in self.inputs], dim=1)
        zipped = zip(self.inputs, pieces, strict=True)
        return {one.name: x.reshape(len(x), *one.shape) for one, x in zipped}

    @property
    def by_place(self) -> Float[Tensor, "row *place"]:
        """Sum over features: one number for each token, pixel or row."""
        value = torch.as_tensor(self.value)
        return value if self.feature_axis is None else value.sum(self.feature_axis)

    @property
    def per_place(self) -> Float[Tensor, "row *place"]:
        """One number for each position: token, pixel, or entry of a row of numbers."""
        if not self.inputs:
            return torch.as_tensor(self.value) if self._is_rows else self.by_place
        zipped = zip(self.inputs, self.parts.values(), strict=True)
        places = [x if x.ndim < 3 else x.sum(one.axis) for one, x in zipped]
        return torch.cat([x.reshape(len(x), -1) for x in places], dim=1)

    @property
    def place_names(self) -> tuple[str, ...]:
        """Names of the positions of several inputs, in ``per_place`` order; empty for one input."""
        each = [(one.name, one.n_places) for one in self.inputs]
        return tuple(f"{name} {i}" if n > 1 else name for name, n in each for i in range(n))

    @property
    def _is_rows(self) -> bool:
        return torch.as_tensor(self.value).ndim == 2


@dataclass(frozen=True, eq=False)
class Parts:
    """Attributions to the parts of an input.

    Parameters
    ----------
    value : Tensor
    base : Float[Tensor, "row"] or None
        The objective at the baseline, if parts add up to the rise from the baseline.
    is_reached : bool
        Whether the objective depends on the site at all.
    baseline : str
        Name of the baseline that was chosen among several; empty if there was no choice.
    """

    value: Tensor
    base: Float[Tensor, "row"] | None = None
    is_reached: bool = True
    baseline: str = ""


class Attributor(Explainer):
    """An explainer that gives each entry of one tensor a number."""

    adds_up: ClassVar[bool] = False
    at_point: ClassVar[bool] = False
    """Whether the gradient at the point itself is all that it takes of the model."""

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        site: Pattern = INPUT,
        objective: Objective | None = None,
    ) -> Attribution:
        """Return the attribution of the objective to each entry at a site.

        Parameters
        ----------
        model : Model or nn.Module
            Left as it was; rows must not interact (eval mode is set meanwhile).
        inputs : Tensor, tuple, dict or InputBatch
            What the model is called with.
        site : pattern, default="input"
            ``input``, or a module's output. ``input`` is every floating-point input together
            with the tables that are fed tokens or codes; ``:in.right`` is the input of that name.
        objective : Objective, optional
            By default the logit of the predicted class or token.

        Raises
        ------
        SiteError
            If the site cannot be varied.
        InputError
            If the objective does not fit the model, or within ``torch.inference_mode``.
        """
        function = SiteFunction(model, inputs, site, keeps_graph=self.at_point)
        return self.at(function, objective or Objective())

    def at(self, function: SiteFunction, objective: Objective) -> Attribution:
        """Return the attribution of a model that is given as a function of one of its tensors."""
        fixed = objective.at(function)
        explained = fixed.of(function.outputs).detach()
        with torch.enable_grad():  # also within a user's no_grad, where slopes would be 0
            parts = self._parts(function, fixed)
        value, gap = _of_real_tokens(parts.value, function.mask), None
        flags = [] if parts.is_reached else ["unused"]
        flags += ["held_inputs"] if function.unexplained else []
        if parts.base is not None:
            rise = explained - parts.base.to(explained)
            gap = rise - value.flatten(1).sum(1).to(explained)
            large = torch.maximum(
                RTOL * rise.abs().clamp(min=SMALL), ROUNDING * explained.abs().amax()
            )
            wide = bool((gap.abs() > large).any())
            flags += ["incomplete"] if wide else []
        if not bool(torch.isfinite(value).all() and torch.isfinite(explained).all()):
            flags.append("nonfinite")
        axis = function.feature_axis if value.shape == function.value.shape else None
        return Attribution(
            value=value,
            n=len(value),
            unit="objective" if self.adds_up else "",
            direction="higher" if self.signed else "none",
            flags=tuple(flags),
            conventions={
                "method": repr(self),
                "objective": fixed.objective.name,
                **fixed.output_named,
                **sites_named(function),
                "baseline": parts.baseline or self._compared_with(function),
                "signed": self.signed,
                "se": "none: a single answer for each input",
            },
            objective=explained,
            gap=gap,
            feature_axis=axis,
            inputs=_explained(function) if value.shape == function.value.shape else (),
        )

    @property
    def signed(self) -> bool:
        """True if values can say that something lowers the objective."""
        return True

    def _compared_with(self, function: SiteFunction) -> str:
        """Return the name of the reference that the values are compared with."""
        baseline = getattr(self, "baseline", None)
        return "none" if baseline is None else baseline.name_at(function)

    @abstractmethod
    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        """Return the attribution of the objective to each part of the site."""


def _of_real_tokens(value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attributions with padding set to exactly 0, to remove rounding errors."""
    if mask is None or value.shape[:2] != mask.shape:
        return value
    real = mask.reshape(*mask.shape, *[1] * (value.ndim - 2)).to(value.device)
    return torch.where(real, value, 0.0)


def sites_named(function: SiteFunction) -> dict[str, str]:
    """Return the site, the varied inputs and the fixed inputs, as conventions of a result."""
    named = {"inputs": function.inputs, "held": function.held}
    return {"site": function.site} | {k: ", ".join(v) for k, v in named.items() if v}


def _explained(function: SiteFunction) -> tuple[ExplainedInput, ...]:
    """Return the inputs that are varied together, or an empty tuple for a single tensor."""
    parts = function.parts
    if parts[0].value is function.value:
        return ()
    return tuple(ExplainedInput(p.name, tuple(p.value.shape[1:]), p.axis) for p in parts)
