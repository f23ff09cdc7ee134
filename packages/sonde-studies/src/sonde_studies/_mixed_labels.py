"""Labels of noisy rows that are spread over neighbours and mixed with those of prototypes."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from sonde.layers import StateGraph, propagate

CLASSES, NEIGHBOURS, ALPHA, WEIGHT = 10, 10, 0.8, 0.5
RENEWED = 100
"""Steps of training after which mixed labels are computed anew."""


def spread(x: Tensor, given: Tensor) -> Tensor:
    """Return each row's distribution of labels, propagated over its nearest neighbours.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
    given : Int[Tensor, "row"]

    Returns
    -------
    Float[Tensor, "row class"]
    """
    graph = StateGraph(x.shape[1], "knn", k=NEIGHBOURS).edges(x.unsqueeze(0))[0]
    found = propagate(one_hot(given, CLASSES).to(x), graph, ALPHA)
    return found / found.sum(1, keepdim=True)


def cosines(states: Tensor, given: Tensor) -> Tensor:
    """Return the cosine of each state with the mean state of each class that has rows, or -1."""
    found = states.new_full((len(states), CLASSES), -1.0)
    for c in given.unique().tolist():
        found[:, c] = normalize(states, dim=1) @ normalize(states[given == c].mean(0), dim=0)
    return found


def mixed(propagated: Tensor, states: Tensor, current: Tensor) -> Tensor:
    """Return the largest entry of ``(1 - b) Y + b softmax(cos)``, with cosines to prototypes.

    Parameters
    ----------
    propagated : Float[Tensor, "row class"]
        Y.
    states : Float[Tensor, "row dim"]
    current : Int[Tensor, "row"]
        Labels whose mean states are the prototypes.

    Returns
    -------
    Int[Tensor, "row"]
    """
    near = torch.softmax(cosines(states, current), 1)
    return ((1 - WEIGHT) * propagated + WEIGHT * near).argmax(1)
