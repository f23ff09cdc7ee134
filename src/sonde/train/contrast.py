"""Pull rows of the same example, or of the same label, together and push all others away.

With two augmented views of each example, or with labels. The value falls with the number of
candidates: compare it at one batch size alone.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError


@final
class Contrast(nn.Module):
    """Cross entropy of finding the positives of a row among all other rows (InfoNCE).

    ``-(s_ip - log sum_j exp s_ij)`` with ``s = cos / temperature``, the mean over the positives of
    a row, then over the rows that have any. Positives are the other views of the example, or the
    other rows of its label. ``decoupled`` leaves the other positives out of the sum.

    Range        [0, inf), nats; lower = positives nearer than all others.
    Cost         O(rows^2 dim) a step.
    Assumes      rows of at least one positive pair in the batch.
    Batching     log_mean: the value depends on the number of rows of the batch.

    Parameters
    ----------
    temperature : float, default=0.1
    decoupled : bool, default=False

    References
    ----------
    oord2018cpc
    """

    paper: ClassVar[str] = "oord2018cpc"
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"temperature": 0.5, "decoupled": True})

    def __init__(self, temperature: float = 0.1, decoupled: bool = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"Contrast: expected temperature above 0, got {temperature}.")
        self.temperature, self.decoupled = temperature, decoupled

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"] | None = None,
        view: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy of rows that have a positive."""
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        positive = _owner(x, label, view) & ~itself
        rows = normalize(x, dim=1)
        scores = (rows @ rows.T / self.temperature).masked_fill(itself, -torch.inf)
        counted = positive.any(1)
        if not bool(counted.any()):
            raise InputError(
                "Contrast: expected rows that belong together, got none. Run the model on two "
                "views before the loss, or pass labels that repeat in a batch."
            )
        if self.decoupled:
            others = scores.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
            whole = torch.logaddexp(scores, others.expand_as(scores))
        else:
            whole = scores.logsumexp(1, keepdim=True)
        each = torch.where(positive, whole - scores, 0.0).sum(1)
        return (each[counted] / positive.sum(1)[counted]).mean()


def _owner(x: Tensor, label: Tensor | None, view: Tensor | None) -> Tensor:
    """Return which rows belong together, (row, row)."""
    if label is not None:
        return (label[:, None] == label[None]) & (label >= 0)[:, None]
    n_views = 1 if view is None else int(view.max()) + 1
    example = torch.arange(len(x), device=x.device) % (len(x) // n_views)
    return example[:, None] == example[None]
