"""Free energy of the logits: low if there is strong evidence for any class."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._metric import check_fitted_width


@dataclass(frozen=True)
class EnergySumState(State):
    """Sum of the energies of ``n`` rows of ``n_classes`` logits."""

    n: int
    sum: Float[Tensor, ""]
    n_classes: int


@final
@dataclass(frozen=True)
class EnergySum(Statistic[EnergySumState]):
    """Mean energy of the fitted rows, independent of how data are split.

    Parameters
    ----------
    temperature : float, default=1.0
    """

    temperature: float = 1.0

    def observe(self, logits: Float[Tensor, "row class"]) -> EnergySumState:
        """Return the sum over a batch."""
        energies = energy_of(logits, self.temperature)
        return EnergySumState(len(logits), energies.double().sum(), logits.shape[1])

    def merge(self, a: EnergySumState, b: EnergySumState) -> EnergySumState:
        """Return the sum over both states."""
        return EnergySumState(a.n + b.n, a.sum + b.sum, a.n_classes)

    def influence(
        self,
        state: EnergySumState,
        gradient: EnergySumState,
        logits: Float[Tensor, "row class"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times each row's energy minus the mean."""
        energies = energy_of(logits, self.temperature).double()
        return (energies - state.sum / state.n) * gradient.sum


def energy_of(logits: Float[Tensor, "row class"], temperature: float) -> Float[Tensor, "row"]:
    """Return ``-T logsumexp(f / T)`` in at least float32."""
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return -temperature * torch.logsumexp(wide / temperature, dim=1)


@final
@dataclass(frozen=True, kw_only=True)
class EnergyScorer(Scorer):
    """Energy of the logits; ``value`` is its mean over the fitted rows."""

    temperature: float
    n_classes: int

    def score(self, logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the energy of each row."""
        check_fitted_width("Energy", logits, self.n_classes, "classes")
        return infinite_where_nonfinite(energy_of(logits, self.temperature), logits=logits)


@final
@dataclass(frozen=True)
class Energy(Detector):
    """Negative log of the sum of exponentiated logits.

    ``-T ln sum_c exp(f_c / T)``: under a classifier read as an energy model, minus the log density
    up to a constant. Adding a constant to all logits shifts it.

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 24 bytes; O(classes) per row.
    Assumes      a classifier (or the next-token logits of a language model).
    Differs      nothing; the sign is that of the energy, not of the score in some code.

    Parameters
    ----------
    temperature : float, default=1.0
        Divisor of the logits, above 0.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    >>> Energy().fit(logits, logits=logits).score(logits).round(decimals=4).tolist()
    [-2.4076, -1.0986]

    References
    ----------
    liu2020energy
    """

    temperature: float = 1.0
    paper: ClassVar[str] = "liu2020energy"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"temperature": 2.0})

    def __post_init__(self) -> None:
        check_ranges(self, temperature="> 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the mean energy."""
        return {"energies": EnergySum(self.temperature)}

    def result(self, energies: EnergySumState) -> EnergyScorer:
        """Return the scorer with the temperature and the number of classes."""
        return EnergyScorer(
            value=energies.sum / energies.n,
            n=energies.n,
            unit="units of the logits",
            conventions={"value": "mean energy of the fitted rows"},
            temperature=self.temperature,
            n_classes=energies.n_classes,
        )
