"""Values in place of what is taken away: zero, a mean, a constant, a blur, or given values."""

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.explain._batches import batches_of
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction

Kind = Literal["auto", "mean", "zero", "constant", "blur", "values"]


@final
@dataclass(frozen=True, eq=False)
class Baseline:
    """Values at a site that say nothing about the input. Results of two baselines do not compare.

    Parameters
    ----------
    kind : {"auto", "zero", "blur", "constant", "values", "mean"}, default="auto"
        ``auto`` is ``blur`` over the shorter side where pictures are varied, else ``zero``.
        ``blur``, of pictures, is the mean over ``size`` x ``size`` pixels around each. ``mean`` is
        the mean of each feature over the examples and places that are explained together, so an
        explanation depends on its batch; ``Baseline.fit`` takes the mean from a data set.
    constant : float, default=0.0
    size : int, default=9
        Odd.
    values : Tensor, optional
        For ``values``: one for each feature (a fitted mean), or a whole tensor like the site's.
    name : str, default=""
        How results name given values.

    Examples
    --------
    >>> str(Baseline("constant", 0.5))
    'constant 0.5'
    """

    kind: Kind = "auto"
    constant: float = 0.0
    size: int = 9
    values: Float[Tensor, "..."] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, kind=get_args(Kind))
        if (self.kind == "values") != (self.values is not None):
            raise InputError("Baseline: expected values with kind='values', and with no other.")
        if self.kind == "blur" and (self.size < 3 or self.size % 2 == 0):
            raise InputError(f"Baseline: expected an odd size of at least 3, got {self.size}.")

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"constant {self.constant:g}"
        return f"blur {self.size}" if self.kind == "blur" else self.name or self.kind

    @classmethod
    def fit(cls, model: Model | nn.Module, inputs: Any, *, site: Pattern = INPUT) -> "Baseline":
        """Return the mean of each feature at a site over a data set.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Inputs, Tensor, tuple, dict, InputBatch, or an iterable of the latter
        site : pattern, default="input"

        Raises
        ------
        InputError
            If there is no input.
        """
        total, n, n_rows = torch.zeros(()), 0, 0
        for batch in batches_of(inputs):
            rows = _place_features(function := SiteFunction(model, batch, site))
            total = total + rows.double().sum(0).cpu()
            n, n_rows = n + len(rows), n_rows + function.n
        if not n:
            raise InputError("Baseline.fit: expected at least one input, got none.")
        return cls("values", values=(total / n).float(), name=f"mean of {n_rows} fitted rows")

    def at_kind(self, function: SiteFunction) -> "Baseline":
        """Return the baseline with ``auto`` resolved by what is varied."""
        if self.kind != "auto":
            return self
        x = function.value
        if function.site != INPUT or x.ndim != 4 or min(x.shape[2:]) < 3:
            return Baseline("zero")
        return Baseline("blur", size=min(x.shape[2:]) | 1)

    def at(self, function: SiteFunction) -> Tensor:
        """Return the values for each example, of the shape of the site's.

        Raises
        ------
        ShapeError
            If given values do not fit.
        InputError
            If a mean is over a single row: it would equal that row.
        """
        if self.kind == "auto":
            return self.at_kind(function).at(function)
        x, axis = function.value, function.feature_axis
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.constant)
        if self.kind == "blur":
            return self._blurred(x)
        if self.values is not None:
            return self._given(x, axis, self.values)
        rows = _place_features(function)
        if len(rows) < 2:
            raise InputError(
                f"Baseline: expected two rows or more for their mean, got {len(rows)} at "
                f"{function.site}. Fit the mean before: Baseline.fit(model, data)."
            )
        return rows.mean(0).expand_as(x.movedim(axis, -1)).movedim(-1, axis)

    def _given(self, x: Tensor, axis: int, values: Tensor) -> Tensor:
        values = values.to(x)
        if values.ndim == 1 and len(values) == x.shape[axis]:
            return values.expand_as(x.movedim(axis, -1)).movedim(-1, axis)
        if values.shape in (x.shape, x.shape[1:]):
            return values.expand_as(x)
        raise ShapeError(
            f"Baseline: expected one value for each of {x.shape[axis]} features or a tensor like "
            f"{tuple(x.shape)}, got {tuple(values.shape)}."
        )

    def _blurred(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise InputError(
                f"Baseline: blur needs images (row, channel, h, w), got {tuple(x.shape)}."
            )
        half = self.size // 2  # along one axis after the other: the same mean, and far fewer sums
        rows = avg_pool2d(x, (self.size, 1), 1, (half, 0), count_include_pad=False)
        return avg_pool2d(rows, (1, self.size), 1, (0, half), count_include_pad=False)


def _place_features(function: SiteFunction) -> Float[Tensor, "row feature"]:
    """Return the features of every real place of every example."""
    wide, mask = function.value.movedim(function.feature_axis, -1), function.mask
    return wide.reshape(-1, wide.shape[-1]) if mask is None else wide[mask.to(wide.device)]
