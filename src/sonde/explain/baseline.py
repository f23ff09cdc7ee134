"""What stands in place of what is taken away: zero, a mean, a constant, a blur, or given values."""

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sonde.core.errors import InputError, ShapeError
from sonde.tap.reading.site_function import SiteFunction

Kind = Literal["mean", "zero", "constant", "blur", "values"]


@final
@dataclass(frozen=True, eq=False)
class Baseline:
    """Values at a site that say nothing about the input. Results of two baselines do not compare.

    Parameters
    ----------
    kind : {"mean", "zero", "constant", "blur", "values"}, default="mean"
        ``mean`` of each feature over the examples and places that are explained; ``blur``, of
        images, the mean over ``size`` x ``size`` pixels around each.
    constant : float, default=0.0
    size : int, default=9
        Odd.
    values : Tensor, optional
        Of ``values``: one for each feature (a fitted mean), or a whole tensor like the site's.

    Examples
    --------
    >>> str(Baseline("constant", 0.5))
    'constant 0.5'
    """

    kind: Kind = "mean"
    constant: float = 0.0
    size: int = 9
    values: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"Baseline: expected one of {', '.join(get_args(Kind))}, got {self.kind!r}."
            )
        if (self.kind == "values") != (self.values is not None):
            raise InputError("Baseline: expected values with kind='values', and with no other.")
        if self.kind == "blur" and (self.size < 3 or self.size % 2 == 0):
            raise InputError(f"Baseline: expected an odd size of at least 3, got {self.size}.")

    def __str__(self) -> str:
        return f"constant {self.constant:g}" if self.kind == "constant" else self.kind

    def at(self, function: SiteFunction) -> Tensor:
        """Return the values for each example, of the shape of the site's.

        Raises
        ------
        ShapeError
            If given values do not fit.
        """
        x, axis = function.value, function.feature_axis
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.constant)
        if self.kind == "blur":
            return self._blurred(x)
        if self.values is not None:
            return self._given(x, axis, self.values)
        return self._mean(x, axis, function.mask)

    def _mean(self, x: Tensor, axis: int, mask: Tensor | None) -> Tensor:
        wide = x.movedim(axis, -1)
        kept = wide[mask.to(x.device)] if mask is not None else wide.reshape(-1, wide.shape[-1])
        return kept.mean(0).expand_as(wide).movedim(-1, axis)

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
        return avg_pool2d(x, self.size, 1, self.size // 2, count_include_pad=False)
