"""Order the units of a site by importance, so that the model can later be cut to any width.

For compact states, and for labels with errors: the first units learn what most examples share. Put
the site after batch norms, which would see a changing number of zeros.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.train._draws import Draws


@final
class NestedDropout(nn.Module):
    """In training, set the units after a random width to 0; in evaluation, change nothing.

    The width ``k`` is drawn from ``p(k) ~ exp(-(k / std)^2)`` over 1 .. dim ("gaussian"),
    ``(1 - rate)^k`` ("geometric"), evenly ("uniform"), or evenly from ``widths``. Nothing is
    rescaled. Use it as a layer of a model, or at a site while a model trains:
    ``sonde.training(model, {site: NestedDropout()})``.

    Range        the shape of ``x``.
    Cost         one product.
    Assumes      units on the last axis.
    Batching     mean, given the width.

    Parameters
    ----------
    law : {"gaussian", "geometric", "uniform"}, default="gaussian"
        Distribution of the random width.
    std : float, default=10
        Standard deviation of the width for "gaussian".
    rate : float, default=0.1
        Probability of stopping at each unit for "geometric", in (0, 1).
    widths : sequence of int, optional
        The only widths to draw, as in Matryoshka representations.
    per : {"batch", "row"}, default="batch"
        Whether all examples share a width.
    seed : int, default=0
        Seed of the widths.

    Examples
    --------
    >>> nested = NestedDropout(std=4.0)
    >>> [round(float(p), 4) for p in nested.kept(16)[:3]]
    [1.0, 0.6915, 0.4357]
    >>> nested.truncated(2)(torch.ones(1, 4)).tolist()
    [[1.0, 1.0, 0.0, 0.0]]

    References
    ----------
    rippel2014nested
    """

    paper: ClassVar[str] = "rippel2014nested"
    variants: ClassVar[dict[str, str]] = {
        "noisy_labels": "chen2022compressing",
        "widths": "kusupati2022matryoshka",
    }
    has_loss: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = ({}, {"law": "geometric", "per": "row"})

    def __init__(
        self,
        law: Literal["gaussian", "geometric", "uniform"] = "gaussian",
        std: float = 10.0,
        rate: float = 0.1,
        widths: tuple[int, ...] | None = None,
        per: Literal["batch", "row"] = "batch",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.law, self.std, self.rate, self.widths, self.per = law, std, rate, widths, per
        check_ranges(self, law=("gaussian", "geometric", "uniform"), per=("batch", "row"))
        check_ranges(self, std="> 0", rate="(0, 1)")
        if widths is not None and not min(widths) > 0:
            raise InputError(f"NestedDropout: expected widths above 0, got {widths}.")
        self.draws = Draws(seed)

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return ``x`` with the units after the random width set to 0."""
        return self.change(x)

    def change(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return ``x`` with units after the random width at 0; in evaluation, ``x`` itself."""
        if not self.training:
            return x
        n = len(x) if self.per == "row" else 1
        drawn = torch.multinomial(
            self.chances(x.shape[-1]), n, replacement=True, generator=self.draws.next()
        )
        k = (drawn + 1).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
        return x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= k, 0.0)

    def chances(self, dim: int) -> Float[Tensor, "dim"]:
        """Return the probability of each width 1 .. dim."""
        k = torch.arange(1, dim + 1, dtype=torch.float64)
        if self.widths is not None:
            if max(self.widths) > dim:
                raise InputError(
                    f"NestedDropout: expected widths of at most {dim}, the units of the site, got "
                    f"{self.widths}."
                )
            p = torch.zeros_like(k)
            p[torch.tensor(self.widths) - 1] = 1.0
        elif self.law == "gaussian":
            p = (-(k / self.std).square()).exp()
        else:
            p = (1 - self.rate) ** k if self.law == "geometric" else torch.ones_like(k)
        return p / p.sum()

    def kept(self, dim: int) -> Float[Tensor, "dim"]:
        """Return the probability that each unit is kept, which decreases along the units."""
        return self.chances(dim).flip(0).cumsum(0).flip(0)

    @staticmethod
    def truncated(width: int) -> Callable[[Tensor], Tensor]:
        """Return the function that sets the units after ``width`` to 0, for ``sonde.editing``."""
        return partial(_truncated, width=width)


def _truncated(x: Tensor, width: int) -> Tensor:
    return x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= width, 0.0)
