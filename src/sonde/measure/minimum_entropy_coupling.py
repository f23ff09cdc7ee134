"""The joint distribution of least entropy for two given marginals."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor


@final
@dataclass(frozen=True, kw_only=True)
class MinimumEntropyCouplingResult(Result):
    """Entropy of a coupling in nats; ``coupling`` has both distributions as marginals.

    ``bound`` is the larger of their entropies, which no coupling goes below; ``information`` is
    the mutual information of the coupling.
    """

    direction: Direction = "lower"
    unit: str = "nats"
    coupling: Float[Tensor, "outcome outcome2"]
    bound: float
    information: float


def minimum_entropy_coupling(p: Any, q: Any) -> MinimumEntropyCouplingResult:
    """Return a coupling of two distributions with nearly minimal entropy.

    Greedy: the largest remaining masses of the two marginals are paired, as much as the smaller
    mass holds, until nothing is left.

    Range        [max(H(p), H(q)), H(p) + H(q)], nats, at most ``ln 2`` above the least.
    Cost         O((outcomes + outcomes2)^2).
    Assumes      numbers of at least 0; counts are divided by their sum.
    Null         the entropy of independent outcomes, ``H(p) + H(q)``.

    Parameters
    ----------
    p, q : array (outcome,)
        Probabilities or counts of the outcomes of each side.

    Examples
    --------
    >>> round(minimum_entropy_coupling([0.5, 0.5], [0.5, 0.25, 0.25]).bits().value, 6)
    1.5

    References
    ----------
    kocaoglu2017entropic
    """
    one, two = (_distribution(name, mass) for name, mass in (("p", p), ("q", q)))
    coupling = torch.zeros(len(one), len(two), dtype=torch.float64)
    rest, rest2 = one.clone(), two.clone()
    for _ in range(len(one) + len(two) - 1):  # each step empties an outcome
        i, j = int(rest.argmax()), int(rest2.argmax())
        mass = torch.minimum(rest[i], rest2[j])
        if not float(mass) > 0.0:
            break
        coupling[i, j] += mass
        rest[i] -= mass
        rest2[j] -= mass
    value, each = _entropy(coupling), (_entropy(one), _entropy(two))
    return MinimumEntropyCouplingResult(
        value=value,
        null=sum(each),
        n=len(one) + len(two),
        range=(max(each), sum(each)),
        conventions={"method": "greedy", "log": "e", "se": "none: nothing is estimated"},
        coupling=coupling,
        bound=max(each),
        information=sum(each) - value,
    )


def _distribution(name: str, mass: Any) -> Float[Tensor, "outcome"]:
    masses = as_tensor("minimum_entropy_coupling", mass, name, InputError).double().cpu()
    valid = masses.ndim == 1 and bool((masses >= 0).all()) and 0.0 < float(masses.sum()) < torch.inf
    if not valid:
        raise InputError(
            f"minimum_entropy_coupling: expected {name} of at least 0 with a finite sum above 0, "
            f"shape (outcome,), got shape {tuple(masses.shape)} with sum {float(masses.sum()):g}."
        )
    return masses / masses.sum()


def _entropy(p: Tensor) -> float:
    return -float(torch.xlogy(p, p).sum())
