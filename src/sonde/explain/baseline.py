"""Replacement values for removed positions: zero, a mean, a constant, a blur, or given values."""

from collections.abc import Sequence
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
from sonde.tap.streams.site_function import INPUT, SiteFunction, Varied

Kind = Literal["auto", "mean", "zero", "constant", "blur", "values"]


TOKENS = 8192
"""Vectors of tokens that are read at a time."""


@final
@dataclass(frozen=True, eq=False)
class Baseline:
    """Values at a site that carry no information about the input.

    Parameters
    ----------
    kind : {"auto", "zero", "blur", "constant", "values", "mean"}, default="auto"
        ``auto`` is ``blur`` over the shorter side where pictures are varied, else ``zero``;
        integrated gradients of tokens also try the mean embedding and noise with the embeddings'
        mean and standard deviation, and take for each example the baseline with the smallest gap.
        ``blur``, of pictures, is the mean over ``size`` x ``size`` pixels around each. ``mean`` is
        the mean of each feature over the examples and places that are explained together, so an
        explanation depends on its batch; ``Baseline.fit`` takes the mean from a data set.
    constant : float, default=0.0
        Value of all entries for the kind ``constant``.
    size : int, default=9
        Odd.
    values : Tensor, optional
        For ``values``: one for each feature (a fitted mean), of several inputs one input after
        another, or a whole tensor like the site's.
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
            raise InputError(
                "Baseline: expected values= with kind='values', and no values= with another kind."
            )
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
        totals, counts, n_rows = list[Tensor](), list[int](), 0
        for batch in batches_of(inputs):
            function = SiteFunction(model, batch, site)
            rows = [_place_features(part) for part in function.parts]
            sums = [x.double().sum(0).cpu() for x in rows]
            totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
            own = [len(x) for x in rows]
            counts = [a + b for a, b in zip(counts, own, strict=True)] if counts else own
            n_rows += function.n
        if not n_rows or not all(counts):
            raise InputError("Baseline.fit: expected at least one input, got none.")
        means = torch.cat([total / n for total, n in zip(totals, counts, strict=True)])
        return cls("values", values=means.float(), name=f"mean of {n_rows} fitted rows")

    def name_at(self, function: SiteFunction) -> str:
        """Return the baseline's name for results; ``auto`` is named for each input."""
        parts = function.parts
        named = {part.name: str(self._kind_of(part)) for part in parts}
        if len(set(named.values())) == 1:
            return str(self._kind_of(parts[0]))
        return ", ".join(f"{kind} ({name})" for name, kind in named.items())

    def _kind_of(self, part: Varied) -> "Baseline":
        if self.kind != "auto":
            return self
        size = part.value.shape[2:]
        if not part.is_input or len(size) != 2 or min(size) < 3:
            return Baseline("zero")
        return Baseline("blur", size=min(size) | 1)

    def candidates(self, function: SiteFunction) -> dict[str, Tensor]:
        """Return baselines by name, in the shape of the site: several only of tokens."""
        plain = {self.name_at(function): self.at(function)}
        if self.kind != "auto":
            return plain
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for vectors in function.token_vectors(TOKENS):
            wide = vectors.double()
            count, total = count + len(wide), total.to(wide) + wide.sum(0)
            squares = squares.to(wide) + wide.square().sum(0)
        if not count:
            return plain
        mean, x = total / count, function.value
        spread = (squares / count - mean.square()).clamp(min=0.0).sqrt()
        draw = torch.randn(len(mean), generator=torch.Generator().manual_seed(0))
        noise = mean + spread * draw.to(spread)
        return {
            **plain,
            "mean embedding": _over_places(mean, x, x.ndim - 1),
            "noise like embeddings": _over_places(noise, x, x.ndim - 1),
        }

    def at(self, function: SiteFunction) -> Tensor:
        """Return the baseline values of each example, in the shape of the site.

        Raises
        ------
        ShapeError
            If given values do not fit.
        InputError
            If a mean is over a single row: it would equal that row.
        """
        parts = function.parts
        if self.values is not None:
            return self._given(function, parts, self.values)
        return function.joined([self._kind_of(part)._of(part) for part in parts])

    def _of(self, part: Varied) -> Tensor:
        x, axis = part.value, part.axis
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.constant)
        if self.kind == "blur":
            return self._blurred(x)
        rows = _place_features(part)
        if len(rows) < 2:
            raise InputError(
                f"Baseline: expected two rows or more for their mean, got {len(rows)} at "
                f"{part.name}. Fit the mean on other inputs first: Baseline.fit(model, data)."
            )
        return _over_places(rows.mean(0), x, axis)

    def _given(self, function: SiteFunction, parts: Sequence[Varied], values: Tensor) -> Tensor:
        """Return the given values: one for each feature of each part, or a whole tensor."""
        x, values = function.value, values.to(function.value)
        widths = [part.value.shape[part.axis] for part in parts]
        if values.ndim == 1 and len(values) == sum(widths):
            zipped = zip(values.split(widths), parts, strict=True)
            return function.joined([_over_places(v, p.value, p.axis) for v, p in zipped])
        if values.shape in (x.shape, x.shape[1:]):
            return values.expand_as(x)
        raise ShapeError(
            f"Baseline: expected a value for each of {sum(widths)} features or a tensor of shape "
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


def _over_places(values: Float[Tensor, "feature"], x: Tensor, axis: int) -> Tensor:
    """Return one value for each feature, at every position of every example."""
    return values.to(x).expand_as(x.movedim(axis, -1)).movedim(-1, axis)


def _place_features(part: Varied) -> Float[Tensor, "row feature"]:
    """Return the features of every position that is not padding."""
    wide, mask = part.value.movedim(part.axis, -1), part.mask
    if mask is None or wide.ndim <= 2:
        return wide.reshape(-1, wide.shape[-1])
    return wide[mask.to(wide.device)]
