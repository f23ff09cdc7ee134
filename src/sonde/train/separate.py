"""Keep two codes of the same examples independent of each other.

For what is common to two groups beside what is special to one of them. The weight is the result:
sweep it, and look at both codes with probes that were trained afresh.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sonde.core.errors import InputError

Penalty = Literal["cosine", "cross_covariance", "joint_entropy"]


@final
class Separate(nn.Module):
    """How much the rows of two sites share; minimised, they become independent.

    ``cosine``: mean of ``cos(x, y)^2``, for codes in the same space. ``cross_covariance``:
    ``|C_xy|_F^2 / (|C_xx|_F |C_yy|_F)``, the linear CKA of the batch. ``joint_entropy``: mean over
    i of ``log mean_j k(x_i, x_j) k(y_i, y_j)`` with ``k = exp(-d^2 / (2 tau))``, the negative of
    the joint entropy.

    Range        [0, 1] for ``cosine`` and ``cross_covariance``, (-inf, 0] for ``joint_entropy``;
                 lower = less shared.
    Cost         O(rows dim^2), ``joint_entropy`` O(rows^2 dim).
    Assumes      rows of both sites in the same order; ``cosine`` codes of one width.
    Batching     mean, pair and log_mean, in the order of the penalties.

    Parameters
    ----------
    penalty : {"cosine", "cross_covariance", "joint_entropy"}, default="cross_covariance"
    tau : float, default=0.5
        Squared width of the kernels of ``joint_entropy``.

    References
    ----------
    louiset2024sepclr
    """

    paper: ClassVar[str] = "louiset2024sepclr"
    batching: ClassVar[str] = "pair"
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"penalty": "cosine"},
        {"penalty": "joint_entropy", "tau": 2.0},
    )

    def __init__(self, penalty: Penalty = "cross_covariance", tau: float = 0.5) -> None:
        super().__init__()
        if penalty not in ("cosine", "cross_covariance", "joint_entropy") or not tau > 0:
            raise InputError(
                f"Separate: expected a known penalty and tau above 0, got {penalty!r}, {tau}."
            )
        self.penalty, self.tau = penalty, tau

    def forward(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]
    ) -> Float[Tensor, ""]:
        """Return what the rows of two sites share."""
        if self.penalty == "joint_entropy":
            apart = torch.cdist(x, x).square() + torch.cdist(y, y).square()
            return (torch.logsumexp(-apart / (2 * self.tau), 1) - _log(len(x))).mean()
        if self.penalty == "cosine":
            if x.shape[1] != y.shape[1]:
                raise InputError(
                    f"Separate: expected codes of one width, got {x.shape[1]} and {y.shape[1]}. "
                    "Take penalty='cross_covariance'."
                )
            return cosine_similarity(x, y, dim=1, eps=1e-12).square().mean()
        own, other = x - x.mean(0), y - y.mean(0)
        size = (own.T @ own).norm() * (other.T @ other).norm()
        return (own.T @ other).square().sum() / size.clamp(min=1e-30)


def _log(n: int) -> float:
    return float(torch.tensor(float(n)).log())
