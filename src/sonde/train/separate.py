"""Keep two codes of each example independent of each other.

For a code of what two groups share, beside a code of what only one group has. The result depends on
the weight: sweep it, and test both codes with freshly trained probes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from sonde.core.autocast import in_float32
from sonde.core.errors import BatchError, InputError
from sonde.core.ranges import check_ranges
from sonde.stats.kernel_sums import gaussian_kernel, unbiased_hsic
from sonde.tap.training.ranks import of_all_ranks

Penalty = Literal["cosine", "cross_covariance", "hsic", "joint_entropy", "adversary"]


@final
class Separate(nn.Module):
    """Dependence between the rows of two sites; minimising it makes them independent.

    ``cosine``: mean of ``cos(x, y)^2``, for codes in the same space. ``cross_covariance``:
    ``|C_xy|_F^2 / (|C_xx|_F |C_yy|_F)``, the linear CKA of the batch. ``hsic``: the unbiased
    independence criterion of Gaussian kernels of width ``tau``, on rows scaled to length 1 if
    ``scaled``. ``joint_entropy``: mean over i of ``log mean_j k(x_i, x_j) k(y_i, y_j)`` with
    ``k = exp(-d^2 / (2 tau))``, the negative of the joint entropy. ``adversary``: a head learns to
    predict ``y`` (rows, or one-hot rows of a label) from ``x`` by squared errors; the gradient that
    reaches ``x`` is reversed, times ``strength``.

    Range        [0, 1] for ``cosine`` and ``cross_covariance``, (-inf, 0] for ``joint_entropy``,
                 about 0 if independent for ``hsic``: lower = less shared. For ``adversary`` the
                 loss of the head: judge by a fresh probe instead.
    Cost         O(rows dim^2), ``hsic`` and ``joint_entropy`` O(rows^2 dim).
    Assumes      rows of both sites in the same order; ``cosine`` codes of one width; ``hsic`` four
                 rows or more.
    Batching     mean for ``cosine`` and ``adversary``, log_mean for ``joint_entropy``, else pair.

    Parameters
    ----------
    penalty : {"cosine", "cross_covariance", "hsic", "joint_entropy", "adversary"}
        "cross_covariance" by default.
    tau : float, default=0.5
        Squared width of the kernels, the same in all batches.
    scaled : bool, default=True
        Whether rows are scaled to length 1 for ``hsic``; if False, a code that shrinks looks
        independent.
    width : int, optional
        Number of features of ``y``, for ``adversary``.
    hidden : int, default=64
        Hidden units of the head of ``adversary``.
    strength : float, default=1.0
        Factor of the loss.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    louiset2024sepclr
    """

    paper: ClassVar[str] = "louiset2024sepclr"
    variants: ClassVar[Mapping[str, str]] = {
        "penalty='hsic'": "gretton2005hsic",
        "penalty='adversary'": "ganin2015reversal",
        "penalty='cosine'": "chen2024disenbooth",
    }
    batching: str = "pair"
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"penalty": "cosine"},
        {"penalty": "hsic", "tau": 2.0, "scaled": False},
        {"penalty": "joint_entropy", "tau": 2.0},
    )

    def __init__(
        self,
        penalty: Penalty = "cross_covariance",
        tau: float = 0.5,
        scaled: bool = True,
        width: int | None = None,
        hidden: int = 64,
        strength: float = 1.0,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.gather = gather
        self.penalty, self.tau, self.scaled = penalty, tau, scaled
        check_ranges(self, penalty=get_args(Penalty), tau="> 0")
        self.strength = strength
        kinds = {"cosine": "mean", "adversary": "mean", "joint_entropy": "log_mean"}
        self.batching = kinds.get(penalty, "pair")
        self.head = None
        if penalty == "adversary":
            if width is None:
                raise InputError(
                    "Separate: expected width= for the adversary, got none. Pass the width of y."
                )
            self.head = nn.Sequential(nn.LazyLinear(hidden), nn.ReLU(), nn.Linear(hidden, width))

    @of_all_ranks("x", "y")
    @in_float32
    def forward(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]
    ) -> Float[Tensor, ""]:
        """Return the penalty on the rows of two sites, or the error of the adversary."""
        if self.head is not None:
            return mse_loss(self.head(_Reversed.apply(x, self.strength)), y.detach())
        if self.penalty == "joint_entropy":
            apart = torch.cdist(x, x).square() + torch.cdist(y, y).square()
            return (torch.logsumexp(-apart / (2 * self.tau), 1) - _log(len(x))).mean()
        if self.penalty == "cosine":
            if x.shape[1] != y.shape[1]:
                raise InputError(
                    f"Separate: expected x and y of the same width, got {x.shape[1]} and "
                    f"{y.shape[1]}. Take penalty='cross_covariance'."
                )
            return cosine_similarity(x, y, dim=1, eps=1e-12).square().mean()
        if self.penalty == "hsic":
            return self._hsic(x, y)
        own, other = x - x.mean(0), y - y.mean(0)
        size = (own.T @ own).norm() * (other.T @ other).norm()
        return (own.T @ other).square().sum() / size.clamp(min=1e-30)

    def _hsic(self, x: Tensor, y: Tensor) -> Tensor:
        if len(x) < 4:
            raise BatchError(f"Separate: expected four rows or more for hsic, got {len(x)}.")
        codes = [normalize(z, dim=1) if self.scaled else z for z in (x, y)]
        near = [gaussian_kernel(z / self.tau**0.5, z / self.tau**0.5) for z in codes]
        return unbiased_hsic(*near)


class _Reversed(torch.autograd.Function):
    """Identity map with a reversed gradient, times ``strength``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -ctx.strength * grads[0], None


def _log(n: int) -> float:
    return float(torch.tensor(float(n)).log())
