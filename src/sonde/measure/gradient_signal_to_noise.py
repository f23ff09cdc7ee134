"""Whether a layer's gradient has a common direction over the data, or is mostly noise.

Early in a training the mean leads (drift), later the scatter over batches does (diffusion). Record
it over a training with ``sonde track`` or a ``Recorder``, beside ``information_plane``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.stats import Scalars, ScalarsState

POOR = 3.0
"""Below so many times what chance alone gives, the error of first order leaves out the bias."""


@final
@dataclass(frozen=True, kw_only=True)
class GradientSignalToNoiseResult(Result):
    """Length of the mean gradient over its standard deviation between batches.

    ``signal`` is the length of the mean, ``noise`` the root of the summed variances of the units of
    a batch's gradient, ``ratio`` the value of each unit alone, NaN if the unit is constant.
    ``corrected_square`` is the square of the value less the square of ``null``, which chance adds:
    it is unbiased, and below 0 half of the time if the mean is zero.
    """

    direction: Direction = "higher"
    signal: float
    noise: float
    corrected_square: float
    ratio: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class GradientSignalToNoise(Instrument):
    """Length of a site's mean gradient over the standard deviation of a batch's gradient.

    ``|mean g| / sqrt(sum_u var(g_u) / batch)``. Above 1 a batch is led by what all data agree on,
    below 1 by which examples it drew. At the output of a linear layer the gradient is that of its
    bias. For the gradients of other weights, feed one row for each batch: see the example.

    Range        [0, inf), dimensionless; higher = batches agree more. Chance alone gives about
                 ``null``, ``sqrt(batch / n)``; ``corrected_square`` is free of it.
    Cost         one pass and a backward for each batch; state 48 dim bytes.
    Assumes      rows that are drawn independently, one for each example (a reducer that pools), and
                 an objective that is a sum over examples.
    Differs      from the paper: gradients at one set of weights, not along an epoch; of outputs,
                 unless you feed those of weights; divided by the sample's n - 1.

    Parameters
    ----------
    batch : int, default=1
        Rows whose mean is the gradient of a batch; the value grows with its root.
    objective : str or None, default="nll"
        Name of the objective of the gradients, as ``sonde.read`` takes it; None takes any, such as
        a function of your own.

    Examples
    --------
    >>> import torch
    >>> from sonde.engine import Running
    >>> running = Running(GradientSignalToNoise())
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> for batch in ([[1.0, 3.0]], [[1.0, 5.0]]):
    ...     (row,) = torch.autograd.grad(layer(torch.tensor(batch)).sum(), layer.weight)
    ...     running.update(row.reshape(1, -1), grad=row.reshape(1, -1))
    >>> round(running.result().value ** 2, 6)  # (1 + 16) / 2
    8.5

    References
    ----------
    shwartzziv2017opening
    """

    batch: int = 1
    objective: str | None = "nll"

    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "shwartzziv2017opening"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"batch": 8, "objective": None})

    def __post_init__(self) -> None:
        check_ranges(self, batch=">= 1")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the objective's gradient."""
        return {} if self.objective is None else {"objective": self.objective}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each gradient unit's mean and scatter."""
        return {"gradients": Scalars("grad")}

    def result(self, gradients: ScalarsState) -> GradientSignalToNoiseResult:
        """Divide the mean's length by the standard deviation of batch means."""
        variance = gradients.scatter / (max(gradients.n - 1, 1) * self.batch)
        square = gradients.mean.square()
        signal, noise = (float(x.detach().sum().sqrt()) for x in (square, variance))
        moving, null = gradients.high > gradients.low, math.sqrt(self.batch / gradients.n)
        value: float | Tensor = math.nan
        flags: tuple[str, ...] = ("dead",)
        if bool(moving.any()) and noise > 0:
            value = (square.sum().clamp(min=1e-300) / variance.sum()).sqrt()
            flags = ("se_first_order",) if signal < POOR * null * noise else ()
        ratio = (square.detach() / variance.detach()).sqrt()
        return GradientSignalToNoiseResult(
            value=value,
            null=null,
            n=gradients.n,
            range=(0.0, math.inf),
            flags=flags,
            conventions={"batch": self.batch, "variance": "divisor n - 1"},
            signal=signal,
            noise=noise,
            corrected_square=math.nan if "dead" in flags else (signal / noise) ** 2 - null**2,
            ratio=ratio.masked_fill(~moving, math.nan),
        )


def gradient_signal_to_noise(
    gradients: Any, *, batch: int = 1, group: Any = None
) -> GradientSignalToNoiseResult:
    """Return the agreement of per-example gradients; see ``GradientSignalToNoise``.

    Parameters
    ----------
    gradients : array (row, weight)
        Gradient of each example's loss with respect to the weights.
    batch : int, default=1
        Number of examples in a step of the training that the ratio is meant for.
    group : ints (row,), optional
        Rows that belong together, such as one person's; they count as one in the error.
    """
    return GradientSignalToNoise(batch, None).fit(gradients, grad=gradients, group=group)
