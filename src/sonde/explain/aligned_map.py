"""Spread a class's map over tokens that are alike in colours, features and attention.

For maps of a class that light up a part of an object, from a model that was trained on classes
alone. With masks to train on, train a model that draws them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sonde.core.errors import InputError, ShapeError

LEAST = 1e-6
"""Attention below this counts as this much, so that its logarithm is finite."""


def aligned_map(
    maps: Float[Tensor, "row token class"],
    *,
    colours: Float[Tensor, "row _ _"] | None = None,
    features: Float[Tensor, "row _ _"] | None = None,
    attention: Float[Tensor, "row _ _"] | None = None,
    width: float = 0.1,
    temperature: float = 0.1,
    steps: int = 1,
) -> Float[Tensor, "row token class"]:
    """Return the maps after tokens took over the values of tokens that are like them.

    ``P^steps maps`` with the rows of ``P`` a softmax over tokens ``j`` of
    ``-|c_i - c_j|^2 / (2 width^2) + cos(f_i, f_j) / temperature + log (a_ij + a_ji) / 2``: tokens
    are alike if they are so in every source that is given.

    Range        that of the maps: each new value is a mean of old values of its class.
    Cost         ``token^2 (channel + dim + steps class)`` for each row.
    Assumes      colours between 0 and 1.
    Differs      from the paper: no parameter is learned; the abstract gives no formulas.

    Parameters
    ----------
    maps : Float[Tensor, "row token class"]
        A map over tokens for each class, such as logits of each token.
    colours : Float[Tensor, "row token channel"], optional
        Mean colour of each token's patch.
    features : Float[Tensor, "row token dim"], optional
        States of the tokens.
    attention : Float[Tensor, "row token token"], optional
        Self-attention between tokens, mean over heads.
    width : float, default=0.1
        Distance of colours at which tokens begin to differ.
    temperature : float, default=0.1
        Difference of cosines at which tokens begin to differ.
    steps : int, default=1
        How often values are taken over; 0 returns the maps.

    Examples
    --------
    >>> maps = torch.tensor([[[3.0], [0.0], [0.0]]])
    >>> colours = torch.tensor([[[1.0], [1.0], [0.0]]])
    >>> aligned_map(maps, colours=colours).flatten().round(decimals=4).tolist()
    [1.5, 1.5, 0.0]

    References
    ----------
    doei2025
    """
    if colours is None and features is None and attention is None:
        raise InputError("aligned_map: expected colours, features or attention, got none.")
    if width <= 0 or temperature <= 0 or steps < 0:
        raise InputError(
            "aligned_map: expected width and temperature above 0 and steps of at least 0, got "
            f"{width}, {temperature} and {steps}."
        )
    n_rows, n_tokens = maps.shape[:2]
    for name, x in (("colours", colours), ("features", features), ("attention", attention)):
        if x is not None and x.shape[:2] != (n_rows, n_tokens):
            raise ShapeError(
                f"aligned_map: expected {name} of {n_rows} rows and {n_tokens} tokens, like the "
                f"maps, got {tuple(x.shape)}."
            )
    score = maps.new_zeros(n_rows, n_tokens, n_tokens)
    if colours is not None:
        score = score - torch.cdist(colours, colours).square() / (2 * width**2)
    if features is not None:
        unit = normalize(features, dim=-1)
        score = score + unit @ unit.transpose(1, 2) / temperature
    if attention is not None:
        both = (attention + attention.transpose(1, 2)) / 2
        score = score + both.clamp(min=LEAST).log()
    share = score.softmax(-1)
    for _ in range(steps):
        maps = share @ maps
    return maps
