"""Logistic regression on a few columns, by Newton's method."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-14
MOST_STEPS = 100


def logistic(
    z: Float[Tensor, "row feature"], wrong: Bool[Tensor, "row"], l2: float
) -> tuple[Float[Tensor, "feature"], float]:
    """Return the weights and the bias of a logistic regression, by Newton's method.

    The sum of losses and ``l2 / 2 |w|^2`` has one minimum; the bias is not penalised.
    """
    design = torch.cat([z.double(), torch.ones(len(z), 1, dtype=torch.float64)], 1)
    target = wrong.double()
    penalty = torch.full((design.shape[1],), l2, dtype=torch.float64)
    penalty[-1] = 0.0
    share = target.mean()
    point = torch.zeros_like(penalty)
    point[-1] = torch.logit(share)

    def loss(p: Tensor) -> Tensor:
        odds = design @ p
        return torch.nn.functional.softplus(odds).sum() - target @ odds + penalty @ p.square() / 2

    for _ in range(MOST_STEPS):
        chance = torch.sigmoid(design @ point)
        slope = design.T @ (chance - target) + penalty * point
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + torch.diag(penalty)
        bend += ROUNDING * bend.diagonal().max() * torch.eye(len(bend), dtype=torch.float64)
        step = torch.linalg.solve(bend, slope)  # not lstsq: its pivots make other bits each time
        size = 1.0
        while size > 1e-6 and float(loss(point - size * step)) > float(loss(point)):
            size /= 2
        point = point - size * step
        if float(step.abs().max()) < 1e-10:
            break
    return point[:-1], float(point[-1])
