"""Modularity, compactness and explicitness: how latents represent known factors.

The latents are the first site and the factors the second, one unit for each factor.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.engine.steps import minimise
from sonde.measure._factors import N_BINS, FactorSymbols, check_factors, normalised, table_chart
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState, random_halves
from sonde.stats.sampled_rows import SampledRows

ACTIVE = 0.05


@final
@dataclass(frozen=True, kw_only=True)
class InfoMECResult(Result):
    """``value`` is modularity, compactness and explicitness, in this order.

    Only ``active`` latents enter these figures; ``information`` is the share of a factor's entropy
    that each latent knows; ``explicit`` is the explicitness of each factor.
    """

    title: ClassVar[str] = "Mutual information of latents and factors"
    direction: Direction = "higher"
    active: Bool[Tensor, "latent"]
    explicit: Float[Tensor, "factor"]
    information: Float[Tensor, "factor latent"]

    def chart(self) -> dict[str, Any]:
        """Return a chart with a heat map of the information."""
        return table_chart(self.title, "information", self.information)


@final
@dataclass(frozen=True)
class InfoMEC(PairSampleInstrument):
    """Modularity, compactness and explicitness of latents that encode factors (InfoMEC).

    With ``N_fj = I(v_f; z_j) / H(v_f)``: modularity is the mean over latents of ``max_f N_fj /
    sum_f N_fj``, compactness the mean over factors of ``max_j N_fj / sum_j N_fj``, each stretched
    so that an even spread gives 0. Explicitness is the mean over factors of ``1 - CE / H``: CE is
    the cross-entropy of a logistic regression on all active latents, on the half of the groups that
    it was not fitted on.

    Range        [0, 1] each, explicitness below 0 where the regression misleads; higher = better.
                 Invariant to  permutation, shift, scale of all latents.
    Cost         one pass; state ``m`` rows; result O(m latents factors), 40 times for error, null,
                 and a regression for each factor.
    Assumes      a latent is active if its range is above 1/20 of the largest. Constant latents and
                 factors are left out (flag ``dead``). The null of explicitness is the first-order
                 loss of a regression on unrelated latents.
    Differs      from the paper: explicitness on held-out rows, classes weighed alike there too, and
                 a slight penalty, without which separable classes have no fit. Its standard error
                 is that of the held-out rows alone.

    Parameters
    ----------
    n_bins : int, default=20
        Bins of about equal numbers of rows for a latent or factor with more values than that.
    penalty : float, default=1e-4
        Factor of half the squared weights of standardised latents, added to the mean loss.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> import torch
    >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).repeat(9, 1)
    >>> [round(v, 1) for v in info_mec(factors.flip(1), factors).value.tolist()]
    [1.0, 1.0, 1.0]

    References
    ----------
    hsu2023disentanglement
    """

    n_bins: int = N_BINS
    penalty: float = 1e-4
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "hsu2023disentanglement"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"n_bins": 4, "penalty": 0.1, "m": 64},)

    def __post_init__(self) -> None:
        check_ranges(self, n_bins=">= 2", penalty="> 0")

    def result(self, samples: tuple[HashSampleState, HashSampleState]) -> InfoMECResult:
        """Compute the three measures."""
        raw = SampledRows.of(samples)
        symbols = FactorSymbols.of("InfoMEC", samples, self.n_bins)
        check_factors("InfoMEC", raw.rows[1].shape[1])
        latents = raw.rows[0].cpu()
        spread = latents.amax(0) - latents.amin(0)
        active = (spread > ACTIVE * spread.max()) & (spread > 0)

        def figure(rows: SampledRows) -> Tensor:
            return torch.stack(modular_compact(normalised(rows)[:, active]))

        se, how, null = symbols.errors(figure)
        gain, chance = _gain(symbols.rows, latents[:, active], self.penalty)
        held = raw.take(gain.isfinite().any(1))
        error, _ = held.error_of_mean(gain[gain.isfinite().any(1)].nanmean(1))
        explicit = gain.nanmean(0)
        value = torch.stack([*figure(symbols.rows), explicit.nanmean()])
        flags = dict.fromkeys(symbols.flags)
        flags |= {} if bool(value.isfinite().all()) else {"dead": None, "few_rows": None}
        return InfoMECResult(
            value=value,
            se=None if se is None or error is None else torch.cat([se, error[None]]),
            null=torch.cat([null, chance[None]]),
            n=len(raw),
            range=(0.0, 1.0),
            flags=tuple(flags),
            conventions={
                "bins": f"{self.n_bins} of equal numbers of rows",
                "explicitness": "held-out half, classes weighted equally",
                "se": f"{how}; explicitness: over held-out groups",
            },
            active=active,
            explicit=explicit,
            information=normalised(symbols.rows),
        )


def modular_compact(
    table: Float[Tensor, "factor latent"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return modularity and compactness; units without information are skipped."""
    table = table[table.isfinite().all(1)]

    def stretched(t: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
        total, even = t.sum(1), 1.0 / max(t.shape[1], 1)
        if t.numel() == 0 or t.shape[1] < 2:
            return torch.tensor(math.nan, dtype=torch.float64)
        has_information = total > 1e-12  # what rounding leaves of no information
        share = torch.where(
            has_information, t.amax(1) / torch.where(has_information, total, 1.0), math.nan
        )
        return (share.nanmean() - even) / (1.0 - even)

    return stretched(table.T), stretched(table)


def _gain(
    symbols: SampledRows, latents: Float[Tensor, "row latent"], penalty: float
) -> tuple[Float[Tensor, "row factor"], Float[Tensor, ""]]:
    """Return each held-out row's term in ``1 - CE / H``, and its mean by chance.

    NaN for rows that were fitted, and for factors with a single class in a half.
    """
    train = random_halves(symbols.group, 1)[0]
    factors = symbols.rows[1].long()
    gain = torch.full(factors.shape, math.nan, dtype=torch.float64)
    n_groups = len(torch.unique(symbols.group[train]))
    chances: list[float] = []
    for i, factor in enumerate(factors.T):
        both = torch.isin(factor, factor[train]) & torch.isin(factor, factor[~train])
        fitted, held = train & both, ~train & both
        classes, label = torch.unique(factor[both], return_inverse=True)
        if len(classes) < 2 or latents.shape[1] == 0:
            continue
        place = torch.full_like(factor, -1)
        place[both] = label
        log_p = _predicted(latents[fitted], place[fitted], latents[held], penalty)
        right = log_p.gather(1, place[held, None])[:, 0]
        weight = balance(place[held])
        gain[held, i] = weight * (1.0 + right / math.log(len(classes)))
        freedom = (len(classes) - 1) * (latents.shape[1] + 1)
        chances.append(-freedom / (2.0 * n_groups * math.log(len(classes))))
    return gain, torch.tensor(chances, dtype=torch.float64).mean()


def balance(label: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return weights of mean 1 that balance the classes."""
    count = torch.bincount(label).double()
    return len(label) / ((count > 0).sum() * count[label])


def _predicted(
    x: Float[Tensor, "row latent"],
    label: Int[Tensor, "row"],
    held: Float[Tensor, "row2 latent"],
    penalty: float,
) -> Float[Tensor, "row2 class"]:
    """Return held-out log-probabilities of a class-balanced logistic regression."""
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    z, weight = (x - mean) / spread, balance(label)
    n_classes = int(label.max()) + 1
    slope = torch.zeros(z.shape[1], n_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        each = torch.nn.functional.cross_entropy(z @ slope + bias, label, reduction="none")
        return (weight * each).mean() + penalty / 2 * slope.square().sum()

    minimise(loss, [slope, bias], 200, tolerance_change=1e-14)
    return torch.log_softmax(((held - mean) / spread) @ slope.detach() + bias.detach(), 1)


info_mec = as_function(InfoMEC)
