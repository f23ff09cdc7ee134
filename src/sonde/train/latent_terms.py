"""The parts of a variational autoencoder's rate, each with its own weight.

For codes whose dimensions should be independent (raise the weight of the total correlation), or
that should not collapse (weight of the mutual information below 1). The reconstruction is the
task's own loss.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.autocast import in_float32
from sonde.core.errors import BatchError, InputError
from sonde.core.ranges import check_ranges
from sonde.stats import latent_parts
from sonde.tap.training.ranks import of_all_ranks
from sonde.train._draws import Draws

Estimator = Literal["mixture", "leave_one_out"]


@final
class LatentTerms(nn.Module):
    """Weighted sum of a Gaussian code's mutual information, total correlation and grouped KL.

    ``mi E[ln q(z|x) - ln q(z)] + tc E[ln q(z) - sum_g ln q(z_g)] + each E[sum_g ln q(z_g) -
    ln p(z)]`` with ``q(z|x) = N(x, exp y)``, the mixture ``q(z)`` of the rows of the batch, and a
    standard normal ``p``. With all weights 1 it is the rate of a VAE, from one draw for each row.
    ``posterior`` and ``prior`` are weights of ``E ln q(z|x)`` and of ``-E ln p(z)``: if the three
    other weights are 0, then 1 and 1 give the VAE, and -1/2 and 1/2 the mutual information machine,
    whose variances end at the floor.

    Range        (-inf, inf), nats for each row; lower = a code that costs less.
    Cost         O(rows^2 dim) a step.
    Assumes      two rows or more; reconstructions in nats for each row.
    Differs      from the papers: the batch stands for the data set, so the mutual information is
                 at most the logarithm of the number of rows.
    Batching     log_mean: the value depends on the number of rows of the batch.

    Parameters
    ----------
    mi, tc, each : float, default=1
        Weights of the three parts.
    posterior, prior : float, default=0
        Weights of ``E ln q(z|x)`` and of ``-E ln p(z)``.
    groups : sequence of int, optional
        Widths of the segments whose total correlation is taken; by default each dimension alone.
    estimator : {"mixture", "leave_one_out"}, default="mixture"
        Whether a row's own component counts in ``q(z)``.
    floor : float, default=-8
        Least logarithm of a variance; smaller values are raised to it.
    seed : int, default=0
        Seed of the draws of ``z``, if ``z`` is not given.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    chen2018isolating
    """

    paper: ClassVar[str] = "chen2018isolating"
    variants: ClassVar[dict[str, str]] = {
        "mim": "livne2019mim",
        "cmim": "livne2025cmim",
        "time_series": "li2022dts",
    }
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = (
        {"tc": 4.0},
        {"mi": -0.5, "groups": (1, 3), "estimator": "leave_one_out"},
        {"mi": 0.0, "tc": 0.0, "each": 0.0, "posterior": -0.5, "prior": 0.5},
    )

    def __init__(
        self,
        mi: float = 1.0,
        tc: float = 1.0,
        each: float = 1.0,
        posterior: float = 0.0,
        prior: float = 0.0,
        groups: tuple[int, ...] | None = None,
        estimator: Estimator = "mixture",
        floor: float = -8.0,
        seed: int = 0,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.gather = gather
        self.weights = {"mi": mi, "tc": tc, "each": each, "posterior": posterior, "prior": prior}
        self.groups, self.estimator, self.floor = groups, estimator, floor
        check_ranges(self, estimator=("mixture", "leave_one_out"))
        self.draws = Draws(seed)

    @of_all_ranks("x", "y", "z")
    @in_float32
    def forward(
        self,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim"],
        z: Float[Tensor, "row dim"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of the parts.

        Parameters
        ----------
        x, y : Float[Tensor, "row dim"]
            Means and logarithms of the variances of the code.
        z : Float[Tensor, "row dim"], optional
            The draws that the model used; by default new draws.
        """
        terms = self.parts(x, y, z)
        return sum((w * terms[name] for name, w in self.weights.items() if w), start=x.sum() * 0)

    @in_float32
    def parts(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim"], z: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return each part without its weight, in nats per row.

        Raises
        ------
        InputError
            If there are fewer than two rows, or the groups do not add up to the width.
        """
        if x.shape != y.shape:
            raise InputError(
                "LatentTerms: expected means and as many logarithms of variances, got shapes "
                f"{tuple(x.shape)} and {tuple(y.shape)}."
            )
        if len(x) < 2:
            raise BatchError(f"LatentTerms: expected two rows or more, got {len(x)}.")
        groups = self.groups or (1,) * x.shape[1]
        if sum(groups) != x.shape[1]:
            raise InputError(
                f"LatentTerms: expected groups that add up to {x.shape[1]}, got {groups}."
            )
        log_variance = y.clamp(min=self.floor)
        if z is None:
            noise = torch.randn(x.shape, generator=self.draws.next(), dtype=torch.float64).to(x)
            z = x + (log_variance / 2).exp() * noise
        return latent_parts(x, log_variance, z, groups, own=self.estimator == "mixture")
