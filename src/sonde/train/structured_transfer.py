"""Train a small convolutional network on a large network's maps and their relations."""

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.tap.training.ranks import averaged


@final
class StructuredTransfer(nn.Module):
    """Distance of a student's maps from a teacher's: at each position, and between layers.

    A learned 1 x 1 map brings each of the student's maps to the teacher's channels. ``intra`` is
    the mean over layers and places of ``1 - cos``. ``inter`` is the mean over pairs of layers of
    ``|F_T - F_S|^2 / |F_T|^2`` with ``F = A' B / places`` of two maps, both pooled to the smaller
    size. Each part is divided by its first value, so that the weights are comparable.

    Range        [0, inf); 0 = the teacher's maps. About ``inside + between`` at the start.
    Cost         O(places dim dim2) for each pair of layers.
    Assumes      maps (row, dim, high, wide) in the same order of layers; the teacher's carry no
                 gradient.
    Differs      from the paper: ``inter`` is relative to the teacher's products; add the task and
                 soft targets yourself.

    Parameters
    ----------
    dims : sequence of (int, int)
        Channels of the student's and of the teacher's map at each layer.
    inside, between : float, default=1.0
        Weights of the two parts.

    References
    ----------
    liu2020skt
    """

    paper: ClassVar[str] = "liu2020skt"
    start: Tensor

    def __init__(
        self, dims: Sequence[tuple[int, int]], inside: float = 1.0, between: float = 1.0
    ) -> None:
        super().__init__()
        if not dims or min(inside, between) < 0 or (between > 0 and len(dims) < 2):
            raise InputError(
                "StructuredTransfer: expected at least one layer (two if the weight between "
                f"is above 0) and weights of at least 0, got {len(dims)} layers, {inside} and "
                f"{between}."
            )
        self.maps = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in dims)
        self.inside, self.between = inside, between
        self.register_buffer("start", torch.zeros(2))

    @in_float32
    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of both parts.

        Parameters
        ----------
        student, teacher : sequence of Tensor
            A map (row, dim, high, wide) for each layer.
        """
        intra, inter = self.parts(student, teacher)
        if self.training and not bool(self.start.any()):
            first = averaged(torch.stack([intra, inter]).detach())  # one scale for all processes
            self.start.copy_(first.clamp(min=1e-12))
        scale = torch.where(self.start > 0, self.start, 1.0)
        return self.inside * intra / scale[0] + self.between * inter / scale[1]

    @in_float32
    def parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return both parts without scaling or weights; the parameters are those of a call."""
        if len(student) != len(self.maps) or len(teacher) != len(self.maps):
            raise InputError(
                f"StructuredTransfer: expected {len(self.maps)} feature maps of both the "
                f"student and the teacher, got {len(student)} and {len(teacher)}."
            )
        own, other = list[Tensor](), list[Tensor]()
        for change, x, y in zip(self.maps, student, teacher, strict=True):
            size = _smaller(x, y)
            own.append(adaptive_avg_pool2d(change(x), size))
            other.append(adaptive_avg_pool2d(y.detach(), size))
        intra = torch.stack(
            [1 - cosine_similarity(x, y, dim=1).mean() for x, y in zip(own, other, strict=True)]
        ).mean()
        gaps = [intra.new_zeros(())]
        for i, j in combinations(range(len(own)), 2):
            wanted, distances = between_layers(other[i], other[j]), between_layers(own[i], own[j])
            whole = wanted.square().sum().clamp(min=1e-12)
            gaps.append((distances - wanted).square().sum() / whole)
        return intra, torch.stack(gaps).sum() / max(len(gaps) - 1, 1)


@in_float32
def between_layers(
    x: Float[Tensor, "row dim high wide"], y: Float[Tensor, "row dim2 high2 wide2"]
) -> Float[Tensor, "row dim dim2"]:
    """Return ``X' Y / places`` of two maps, both pooled to the smaller size.

    Examples
    --------
    >>> between_layers(torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 2, 2), 3.0)).tolist()
    [[[6.0]]]
    """
    size = _smaller(x, y)
    a, b = (adaptive_avg_pool2d(v, size).flatten(2) for v in (x, y))
    return a @ b.transpose(1, 2) / a.shape[2]


def _smaller(x: Tensor, y: Tensor) -> tuple[int, int]:
    return min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3])
