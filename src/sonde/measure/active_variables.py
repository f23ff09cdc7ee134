"""Find the latents that a variational autoencoder uses, and those equal to the prior.

The means are the first site of a pair and the logarithms of the variances the second.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, bars
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.result import Direction, Result
from sonde.core.state import State
from sonde.core.statistic import Span, Statistic
from sonde.measure._factors import unit_correlations
from sonde.stats import Moments, MomentsState

MOVING = 0.01


@final
@dataclass(frozen=True, kw_only=True)
class ActiveVariablesResult(Result):
    """Number of active latents, with the values that decide which latents are active.

    ``on`` is the share of rows in which a latent is off the prior, ``kl_nats`` its mean divergence;
    ``kind`` is 2 for active, 1 for mixed, 0 for passive latents, ``n_mixed`` and ``n_passive``
    their numbers. ``n_moving`` is a second opinion: the number of latents whose means have a
    variance above 0.01. The correlations are those of the means, and of codes drawn around them.
    """

    title: ClassVar[str] = "Rows in which a latent variable differs from the prior"
    direction: Direction = "higher"
    n_mixed: int
    n_passive: int
    n_moving: int
    kind: Int[Tensor, "latent"]
    on: Float[Tensor, "latent"]
    kl_nats: Float[Tensor, "latent"]
    mean_correlation: Float[Tensor, "latent latent"]
    sampled_correlation: Float[Tensor, "latent latent"]

    def chart(self) -> Chart:
        """Return a chart with a bar for each latent."""
        rows = [{"latent": i, "share": share} for i, share in enumerate(self.on.tolist())]
        return bars(self.title, rows, "latent", "share")


@renamed(threshold="share")
@final
@dataclass(frozen=True)
class ActiveVariables(Instrument):
    """Number of latents that differ from the prior in nearly all rows.

    A latent is off the prior at a row if ``(mu^2 + s^2 - 1 - ln s^2) / 2`` is at least ``kl_nats``.
    It is active if it is off the prior in at least a fraction ``threshold`` of the rows, passive if
    in at most ``1 - threshold``, else mixed. Correlations of sampled codes need no sampling:
    ``cov(mu_i, mu_j) / sqrt((var mu_i + E s_i^2) (var mu_j + E s_j^2))``. Passive latents are near
    0 there, while their means may be strongly correlated.

    Range        [0, latents]; higher = more in use. A posterior at the prior has 0 (the null).
    Cost         one pass; state 8 (2 latents^2 + 5 latents) bytes.
    Assumes      normal posteriors with independent units, and a standard normal prior. Means that
                 never change are flagged ``dead``: their correlations are 0.
    Differs      from the paper: a threshold in nats at each row tells what is on.

    Parameters
    ----------
    kl_nats : float, default=0.05
        Least divergence at which a latent counts as off the prior at a row.
    threshold : float, default=0.95
        Fraction of the rows, in (0.5, 1], from which a latent counts as active; up to ``1 -
        threshold`` it counts as passive.

    Examples
    --------
    >>> import torch
    >>> mu = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> logvar = torch.tensor([-4.0, -4.0, 0.0]).expand(500, 3)
    >>> result = active_variables(mu * torch.tensor([1.0, 1.0, 0.01]), logvar)
    >>> result.value, result.kind.tolist()
    (2.0, [2, 2, 0])

    References
    ----------
    bonheme2023more, burda2016importance
    """

    kl_nats: float = 0.05
    threshold: float = 0.95
    span: ClassVar[Span] = "pair"
    equal_widths: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "bonheme2023more"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"kl_nats": 0.5, "threshold": 0.8})

    def __post_init__(self) -> None:
        check_ranges(self, kl_nats="> 0", threshold="(0.5, 1]")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for both sites' moments, and for the further sums."""
        return {"each": Moments(), "sums": _PosteriorSums(self.kl_nats)}

    def result(
        self, each: tuple[MomentsState, MomentsState], sums: "_PosteriorSumsState"
    ) -> ActiveVariablesResult:
        """Classify the latents, and correlate them."""
        (mu, log_variance), n = each, sums.n
        within = sums.log_variance.exp() / n
        on, between = sums.on.double() / n, mu.variance
        kind = 1 + (on >= self.threshold).long() - (on <= 1.0 - self.threshold + 1e-12).long()
        own = unit_correlations(mu.scatter, mu, mu)
        part = (between / (between + within)).nan_to_num().sqrt()
        sampled = own * part[:, None] * part
        diagonal = torch.eye(len(own), dtype=torch.bool, device=own.device)
        return ActiveVariablesResult(
            value=float((kind == 2).sum()),
            null=0.0,
            n=n,
            unit="latents",
            range=(0.0, float(len(kind))),
            flags=("dead",) if bool((between <= 0).any()) else (),
            conventions={
                "off the prior": f"{self.kl_nats:g} nats",
                "active": f"in {self.threshold:g} of the rows",
                "se": "none: a number of latents",
            },
            n_mixed=int((kind == 1).sum()),
            n_passive=int((kind == 0).sum()),
            n_moving=int((between > MOVING).sum()),
            kind=kind,
            on=on,
            kl_nats=0.5 * (mu.mean.square() + between + within - 1.0 - log_variance.mean),
            mean_correlation=own,
            sampled_correlation=torch.where(diagonal, 1.0, sampled),
        )


@dataclass(frozen=True)
class _PosteriorSumsState(State):
    """Number of ``n`` rows that differ from the prior, and the log of the sum of variances."""

    n: int
    on: Int[Tensor, "latent"]
    log_variance: Float[Tensor, "latent"]


@final
@dataclass(frozen=True)
class _PosteriorSums(Statistic[_PosteriorSumsState]):
    """Sums of a posterior beyond the moments of means and log-variances, independent of splits."""

    kl_nats: float
    span: ClassVar[Span] = "pair"

    def observe(
        self, x: Float[Tensor, "row latent"], y: Float[Tensor, "row latent"]
    ) -> _PosteriorSumsState:
        """Return the sums of a batch of means and logarithms of variances."""
        mu, log_variance = x.double(), y.double()
        kl = 0.5 * (mu.square() + torch.expm1(log_variance) - log_variance)
        on = (kl >= self.kl_nats).sum(0)
        return _PosteriorSumsState(len(x), on, log_variance.logsumexp(0))

    def merge(self, a: _PosteriorSumsState, b: _PosteriorSumsState) -> _PosteriorSumsState:
        """Return the sums of both states."""
        total = torch.logaddexp(a.log_variance, b.log_variance)
        return _PosteriorSumsState(a.n + b.n, a.on + b.on, total)


active_variables = as_function(ActiveVariables)
