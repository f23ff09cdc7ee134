"""Support of each class by a row's states, from classifiers that have not seen the row's group."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.stats.neighbours import nearest

NEIGHBOURS = 10


def class_support(
    log_odds: Float[Tensor, "row class"],
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
) -> Float[Tensor, "row class"]:
    """Return class probabilities: the mean of a held-out classifier's and of the nearest rows'.

    The nearest rows are ten of other groups; each votes for its label.

    Parameters
    ----------
    log_odds : Float[Tensor, "row class"]
        Held-out scores of the linear classifier plus the log frequencies of the classes.
    x : Float[Tensor, "row dim"]
        States or features.
    label : Int[Tensor, "row"]
        Number of each row's class.
    group : Int[Tensor, "row"]
        Group of each row.
    """
    k = min(NEIGHBOURS, len(x) - 1)
    distance, index = nearest(x, x, k, group=group, group2=group)
    votes = torch.nn.functional.one_hot(label[index], log_odds.shape[1]).double()
    votes = (votes * torch.isfinite(distance)[:, :, None]).sum(1)
    votes = votes / votes.sum(1, keepdim=True).clamp(min=1)
    p = (log_odds.softmax(1).nan_to_num(0.0) + votes) / 2
    return p / p.sum(1, keepdim=True).clamp(min=1e-12)
