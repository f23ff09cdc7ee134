"""Closed-form linear map from moments, with a ridge since dead units make them singular.

``torch.linalg.lstsq`` with its default driver returns useless maps where columns are constant.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats.cross_moments import CrossMoments, CrossMomentsState
from sonde.stats.moments import Moments, MomentsState

RIDGE = 1e-4


def ridge_map(
    x: MomentsState, cross: CrossMomentsState, ridge: float = RIDGE
) -> tuple[Float[Tensor, "dim dim2"], Float[Tensor, "dim2"]]:
    """Return the least-squares map ``y = x @ weight + bias`` from merged moments.

    Parameters
    ----------
    x : MomentsState
        With the full scatter.
    cross : CrossMomentsState
        Cross moments of ``x`` and ``y``, over the same rows.
    ridge : float, default=1e-4
        Times the mean variance of the units of ``x``, added to each variance.
    """
    covariance = x.scatter / x.n
    size = covariance.diagonal().mean()
    lift = ridge * (size if float(size) > 0 else torch.ones_like(size))
    whole = covariance + lift * torch.eye(len(covariance)).to(covariance)
    weight = torch.linalg.solve(whole, cross.covariance)
    return weight, cross.mean_y - cross.mean_x @ weight


def ridge_of_rows(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], ridge: float = RIDGE
) -> tuple[Float[Tensor, "dim dim2"], Float[Tensor, "dim2"]]:
    """Return the map of ``ridge_map`` directly from rows.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows to predict from.
    y : Float[Tensor, "row dim2"]
        Rows to predict.
    ridge : float, default=1e-4
        Penalty, relative to the mean variance of ``x``.
    """
    return ridge_map(Moments().observe(x), CrossMoments().observe(x, y), ridge)
