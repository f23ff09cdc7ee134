"""Whether a constant added to one class's logit mends a classifier's wrong rows.

Rows beyond a shifted threshold can be taken for rows in another form: any change that moves them
back mends them too. A shifted threshold is the simpler explanation.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KEPT: Final = 0.95
STEPS: Final = 12


def mended_by_offset(
    wrong: Float[Tensor, "row class"],
    truth: Int[Tensor, "row"],
    right: Float[Tensor, "row2 class"],
    chooses: Bool[Tensor, "row"],
) -> float:
    """Return the share that the best constant mends of the wrong rows that did not choose it.

    Parameters
    ----------
    wrong, right : Float[Tensor, "row class"]
        Logits of rows that the model gets wrong, and right. A constant must leave the answers of
        95 % of the right rows unchanged.
    truth : Int[Tensor, "row"]
        Labels of the wrong rows.
    chooses : Bool[Tensor, "row"]
        Wrong rows that choose the class and the constant.
    """
    lack = wrong.amax(1) - wrong.gather(1, truth[:, None])[:, 0]
    quantiles = torch.linspace(0, 1, STEPS, dtype=lack.dtype)
    sizes = 1.01 * torch.quantile(lack[chooses], quantiles) + 1e-9
    answers, best = right.argmax(1), (0.0, 0.0)
    for k in range(wrong.shape[1]):
        for size in torch.cat([sizes, -sizes]).tolist():
            offset = torch.zeros(wrong.shape[1], dtype=wrong.dtype)
            offset[k] = size
            if float(((right + offset).argmax(1) == answers).double().mean()) < KEPT:
                continue
            hit = ((wrong + offset).argmax(1) == truth).double()
            best = max(best, (float(hit[chooses].mean()), float(hit[~chooses].mean())))
    return best[1]
