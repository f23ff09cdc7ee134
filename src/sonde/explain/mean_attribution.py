"""Attributions of a site's entries, averaged over a data set, and a test of their faithfulness.

A map of one example tells what that answer depends on; means over a data set tell which units a
model relies on at all. Examples may cancel: read the mean size beside the mean.
"""

from collections.abc import Sized
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.explainer import Explainer
from sonde.core.few_groups import widen_error
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.engine.progress import Bar
from sonde.explain._batches import batches_of
from sonde.explain.attribution import Attribution, Attributor
from sonde.explain.faithfulness import CurveTest, Deletion
from sonde.explain.gradients import IntegratedGradients
from sonde.explain.objective import Objective
from sonde.stats import Scalars, ScalarsState
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT


@final
@dataclass(frozen=True, kw_only=True)
class MeanAttributionResult(Result):
    """``value`` is the mean attribution of each entry of the site, or of each unit.

    ``size`` is the mean of its absolute value. ``faithfulness`` is the mean figure of the test over
    all examples and ``random`` that of random orders of the same places; NaN without a test.
    ``moments`` merge with those of other examples (``Scalars``).
    """

    title: ClassVar[str] = "Mean attribution"
    size: Tensor
    faithfulness: float
    random: float
    moments: ScalarsState


@final
@dataclass(frozen=True)
class MeanAttribution(Explainer):
    """Mean of an attribution over all examples of a data set, and its mean faithfulness.

    Every batch is explained and judged in turn, so that memory is flat in examples.

    Range        as the method's; the error is that of a mean over examples.
    Cost         the method's and the test's for every example.
    Assumes      independent examples.

    Parameters
    ----------
    method : Attributor, optional
        The attribution that is averaged; by default the class's own choice.
    test : CurveTest or None, optional
        ``Deletion`` or ``Insertion``; None judges nothing. Tests the probability of the target.
    per : {"entry", "unit"}, default="entry"
        A mean for each entry of the site, or for each unit (channel) with its places added up.
        Texts and pictures of several sizes need ``"unit"``. Several inputs come one after another.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> net.weight.data = torch.eye(2)
    >>> data = [torch.tensor([[4.0, 1.0]])] * 3
    >>> from sonde.explain import GradTimesInput
    >>> MeanAttribution(GradTimesInput(), test=None).explain(net, data).value.tolist()
    [4.0, 0.0]
    """

    method: Attributor = field(default_factory=IntegratedGradients)
    test: CurveTest | None = field(default_factory=lambda: Deletion(n_random=1, steps=10))
    per: Literal["entry", "unit"] = "entry"

    def __post_init__(self) -> None:
        check_ranges(self, per=("entry", "unit"))

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        site: Pattern = INPUT,
        objective: Objective | None = None,
        progress: bool = False,
    ) -> MeanAttributionResult:
        """Return the means over all examples.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Inputs, Tensor, tuple, dict, InputBatch, or an iterable of the latter
            A data set, such as ``sonde.data.open_inputs(model, data)`` gives; each batch is
            explained in turn.
        site : pattern, default="input"
        objective : Objective, optional
            As for an attribution.
        progress : bool, default=False

        Raises
        ------
        InputError
            If there is no input, or examples differ in shape.
        """
        asked = objective or Objective()
        tested = asked if asked.kind == "answer" else replace(asked, kind="prob")
        moments, attribution, flags = None, None, dict[str, None]()
        shape, sizes, judged, random = None, 0.0, 0.0, 0.0
        with Bar("explain", len(inputs) if isinstance(inputs, Sized) else 0, shown=progress) as bar:
            for batch in batches_of(inputs):
                attribution = self.method.explain(model, batch, objective=asked, site=site)
                rows = self._rows(attribution)
                shape = shape or rows.shape[1:]
                if rows.shape[1:] != shape:
                    raise InputError(
                        f"MeanAttribution: expected examples of one shape at {site}, got "
                        f"{tuple(shape)} and {tuple(rows.shape[1:])}. Take per='unit'."
                    )
                new = Scalars().observe(rows.flatten(1).double())
                moments = new if moments is None else Scalars().merge(moments, new)
                sizes = sizes + rows.abs().double().sum(0)
                flags |= dict.fromkeys(attribution.flags)
                if self.test is not None:
                    figure = self.test.judge(model, batch, attribution, objective=tested, site=site)
                    judged += len(rows) * float(figure)
                    random += len(rows) * float(torch.as_tensor(figure.null))
                bar.advance(len(rows))
        if attribution is None or moments is None:
            raise InputError("MeanAttribution: expected at least one example, got none.")
        return self._result(
            attribution, moments, torch.as_tensor(sizes), (judged, random), tuple(flags)
        )

    def _rows(self, found: Attribution) -> Tensor:
        """Return the attribution as a row for each example."""
        value, axis = torch.as_tensor(found.value), found.feature_axis
        if self.per == "entry" or axis is None:
            return value
        if found.inputs:
            parts = zip(found.parts.values(), found.inputs, strict=True)
            return torch.cat([_by_unit(x, one.axis) for x, one in parts], dim=1)
        return _by_unit(value, axis)

    def _result(
        self,
        found: Attribution,
        moments: ScalarsState,
        sizes: Tensor,
        figures: tuple[float, float],
        flags: tuple[str, ...],
    ) -> MeanAttributionResult:
        n = moments.n
        error = widen_error((moments.variance / (n - 1)).sqrt(), n) if n > 1 else None
        judged, random = figures if self.test is not None else (float("nan"), float("nan"))
        return MeanAttributionResult(
            value=moments.mean.view(sizes.shape),
            se=None if error is None else error.view(sizes.shape),
            n=n,
            unit=found.unit,
            direction=found.direction,
            flags=flags,
            conventions={**found.conventions, "per": self.per, "se": "over examples"},
            size=sizes / n,
            faithfulness=judged / n,
            random=random / n,
            moments=moments,
        )


def _by_unit(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 1).flatten(2).sum(2) if x.ndim > 2 else x
