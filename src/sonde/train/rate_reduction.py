"""Spread the classes over different directions, and each class over many (rate reduction).

For representations that are to be used linearly. In small batches the rate is biased upwards; the
measure of the same name, fitted on all rows, says what was reached.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError
from sonde.stats import rate_gain


@final
class RateReduction(nn.Module):
    """Negative rate reduction of the rows of a batch: minimised, it separates the classes.

    ``-(R - sum_k n_k / n R_k)`` with ``R = ln det(1 + dim / eps2 M) / 2`` and the second moments
    ``M`` of unit rows, as in ``sonde.measure.rate_reduction``.

    Range        [-R, 0], nats; lower = classes in more different directions.
    Cost         O(classes dim^3) a step.
    Assumes      two classes or more in the batch; rows with label -1 are left out.
    Differs      from the paper: for one row, not summed over rows.
    Batching     log_mean: the value depends on the number of rows of the batch.

    Parameters
    ----------
    eps2 : float, default=0.5
        Squared error of a row that is tolerated.

    References
    ----------
    yu2020mcr2
    """

    paper: ClassVar[str] = "yu2020mcr2"
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"eps2": 0.1})

    def __init__(self, eps2: float = 0.5) -> None:
        super().__init__()
        if not eps2 > 0:
            raise InputError(f"RateReduction: expected eps2 above 0, got {eps2}.")
        self.eps2 = eps2

    def forward(self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]) -> Float[Tensor, ""]:
        """Return the negative rate reduction of rows with labels."""
        kept = label >= 0
        rows, label = normalize(x[kept], dim=1), label[kept]
        classes, of = label.unique(return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"RateReduction: expected rows of two classes or more, got {len(classes)}. Draw "
                "batches that mix classes."
            )
        parts = [rows[of == k] for k in range(len(classes))]
        seconds = torch.stack([part.T @ part / len(part) for part in parts])
        share = torch.bincount(of).to(rows) / len(rows)
        return -rate_gain(seconds, share, x.shape[1] / self.eps2)[0]
