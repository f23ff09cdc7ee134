"""Learned views of hidden states, contrasted with the given views."""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.train.contrast import Contrast, view_count


@final
class LearnedViews(nn.Module):
    """Contrast of two views and a learned view of each, as four views of an example.

    Two maps, one for each view, make further views of the rows. Nothing else keeps the two learned
    views apart, so the loss adds ``weight max(0, cos - margin)``.

    Range        [0, inf), nats.
    Cost         O(rows^2 dim) a step, over four times the examples.
    Assumes      two views: two forwards before the loss.
    Batching     none: views stand in order. The value depends on the number of rows.
    Differs      from the paper, if rows and maps are trained together: it updates the maps by the
                 contrast after a virtual step of the encoder, as ``virtual_step`` does. Give
                 ``terms.parameters()`` their own learning rate.

    Parameters
    ----------
    dim : int
        Width of the rows.
    temperature : float, default=0.1
        Divisor of the similarities, above 0.
    width : int, default=64
        Hidden units of the maps.
    margin : float, default=0.5
        Mean cosine of the two learned views above which they are pushed apart.
    weight : float, default=0.1
        0 leaves the margin out.

    References
    ----------
    qin2023mclrec
    """

    paper: ClassVar[str] = "qin2023mclrec"
    batching: ClassVar[str] = "none"
    least_views: ClassVar[int] = 2
    examples: ClassVar[tuple[dict, ...]] = ({"dim": 4, "width": 6},)

    def __init__(
        self,
        dim: int,
        temperature: float = 0.1,
        width: int = 64,
        margin: float = 0.5,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        if weight < 0 or not -1 <= margin <= 1:
            raise InputError(
                f"LearnedViews: expected a weight of 0 or more and a margin in [-1, 1], got "
                f"{weight} and {margin}."
            )
        self.contrast = Contrast(temperature)
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim)) for _ in range(2)
        )
        self.margin, self.weight = margin, weight

    @in_float32
    def forward(
        self, x: Float[Tensor, "row dim"], view: Int[Tensor, "row"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the contrast of four views, plus the penalty on similar learned views.

        Parameters
        ----------
        x : Float[Tensor, "row dim"]
            All rows of view 0, then all of view 1.
        view : Int[Tensor, "row"]
        """
        if view is None or view_count(x, view) != 2:
            raise InputError("LearnedViews: expected two views. Run the model twice before.")
        learned = [f(half) for f, half in zip(self.maps, x.chunk(2), strict=True)]
        views = torch.arange(4, device=x.device).repeat_interleave(len(x) // 2)
        alike = cosine_similarity(learned[0], learned[1], dim=1).mean() - self.margin
        value = self.contrast(torch.cat([x, *learned]), view=views)
        return value + self.weight * alike.clamp(min=0)
