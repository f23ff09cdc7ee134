"""Hyperbolic space as a ball: the map from vectors, and distances in the ball."""

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-12


def to_ball(
    v: Float[Tensor, "*axes dim"], curvature: float = 0.1, longest: float = 2.3
) -> Float[Tensor, "*axes dim"]:
    """Map vectors into the ball of radius ``1 / sqrt(curvature)``, from its centre.

    ``tanh(sqrt(c) |v|) v / (sqrt(c) |v|)``.

    Parameters
    ----------
    v : Float[Tensor, "*axes dim"]
        Vectors in the tangent space at the centre of the ball.
    curvature : float, default=0.1
        ``c``, above 0.
    longest : float, default=2.3
        Longer vectors are cut to this length before the map.

    Examples
    --------
    >>> far = to_ball(torch.tensor([3.0, 4.0]), longest=9.0)
    >>> far.double().round(decimals=4).tolist()
    [1.7433, 2.3243]
    """
    length = v.norm(dim=-1, keepdim=True).clamp(min=TINY)
    v = v * (longest / length).clamp(max=1.0)
    scaled = curvature**0.5 * length.clamp(max=longest)
    return v * (scaled.tanh() / scaled)


def poincare_distance(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row2 dim"], curvature: float = 0.1
) -> Float[Tensor, "row row2"]:
    """Return the hyperbolic distance of every pair of points of the ball.

    ``arcosh(1 + 2 c |x - y|^2 / ((1 - c |x|^2) (1 - c |y|^2))) / sqrt(c)``; for small curvature
    twice the Euclidean distance.

    Parameters
    ----------
    x, y : Float[Tensor, "row dim"], Float[Tensor, "row2 dim"]
        Inside the ball, e.g. of ``to_ball``.
    curvature : float, default=0.1
        Curvature of the space, above 0; the ball has the radius ``1 / sqrt(curvature)``.

    Examples
    --------
    >>> centre, point = torch.zeros(1, 2).double(), torch.tensor([[0.5, 0.0]]).double()
    >>> poincare_distance(centre, point, 1.0).round(decimals=6).tolist()
    [[1.098612]]
    """
    gap = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    room = [1 - curvature * z.square().sum(-1) for z in (x, y)]
    u = (2 * curvature * gap / (room[0].unsqueeze(1) * room[1])).clamp(min=TINY)
    return torch.log1p(u + (u * (u + 2)).sqrt()) / curvature**0.5  # arcosh, exact near 1
