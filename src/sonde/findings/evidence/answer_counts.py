"""How many labelled rows a classifier answers correctly, counted over all rows of the pass.

Other figures of the answers come from a sample of rows whose states are finite at every site; the
accuracy of the first screen, and gates on it, count every row.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class AnswerCountsState(State):
    """Counts of labelled rows and of correct answers.

    Parameters
    ----------
    n : int
    correct : Int[Tensor, "cut"]
        Rows whose answer is the label. A single logit is cut at 0, as a logit, and at 0.5, as a
        probability; several logits give their largest, and both counts are equal.
    nonfinite : int
        Rows whose answer holds NaN or infinity; none of them is correct.
    """

    n: int
    correct: Int[Tensor, "cut"]
    nonfinite: int


@final
@dataclass(frozen=True)
class AnswerCounts(Statistic[AnswerCountsState]):
    """Counts of correct answers. Exact."""

    def observe(
        self, logits: Float[Tensor, "row class"], label: Int[Tensor, "row"]
    ) -> AnswerCountsState:
        """Return the counts of a batch."""
        is_known = label >= 0
        logits, label = logits[is_known].detach(), label[is_known]
        finite = torch.isfinite(logits).all(1)
        if logits.shape[1] == 1:
            answers = [(logits[:, 0] > cut).long() for cut in (0.0, 0.5)]
        else:
            answers = [logits.nan_to_num(nan=-torch.inf).argmax(1)] * 2
        correct = torch.stack([(finite & (answer == label)).sum() for answer in answers])
        return AnswerCountsState(int(is_known.sum()), correct.cpu(), int((~finite).sum()))

    def merge(self, a: AnswerCountsState, b: AnswerCountsState) -> AnswerCountsState:
        """Return the counts of both sets of rows."""
        return AnswerCountsState(a.n + b.n, a.correct + b.correct, a.nonfinite + b.nonfinite)
