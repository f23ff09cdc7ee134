"""How differently a router sends groups of states, such as languages."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError


def routing_divergence(
    shares: Float[Tensor, "row expert"], group: Int[Tensor, "row"]
) -> Float[Tensor, ""]:
    """Return the Jensen-Shannon divergence between the mean routing weights of groups, in bits.

    ``H(mean_g p_g) - mean_g H(p_g)``, with ``p_g`` the mean weights of group g over the experts.
    Computed at each layer it tells from which layer on groups use experts of their own.

    Range        [0, log2 of the number of groups]; 0 = all groups are routed alike.
    Cost         one pass over the weights.
    Assumes      many rows of each group: few rows differ by chance.

    Parameters
    ----------
    shares : Float[Tensor, "row expert"]
        Weights of ``Experts.shares``, or probabilities of any router; rows sum to 1.
    group : Int[Tensor, "row"]
        Group of each row.

    Examples
    --------
    >>> shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> round(routing_divergence(shares, torch.tensor([0, 1, 0])).item(), 3)
    1.0

    References
    ----------
    lin1991js
    """
    names = group.unique()
    if len(group) != len(shares) or len(names) < 2:
        raise InputError(
            f"routing_divergence: expected a group for each of {len(shares)} rows and two or more "
            f"groups, got {len(group)} numbers and {len(names)} groups."
        )
    mean = torch.stack([shares[group == name].double().mean(0) for name in names])
    bits = -torch.special.xlogy(mean, mean).sum(1).mean()
    both = mean.mean(0)
    return (-torch.special.xlogy(both, both).sum() - bits) / torch.log(torch.tensor(2.0))
