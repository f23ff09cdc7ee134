"""Weights of rows from evidence about them, to select the examples of a training step.

For labels with errors, for teachers that are right on some rows only, and for retrieved items that
can harm. Weights carry no gradient.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.renaming import renamed

Rule = Literal["small_loss", "co_teaching", "partition", "agreement", "drop_harmful"]


@renamed(remove="drop")
@final
@dataclass(frozen=True)
class Select:
    """Row weights in [0, 1] by a rule; multiply losses by them and divide by their sum.

    ``small_loss``: 1 for the ``1 - remove min(step / steps, 1)`` of the rows with the smallest
    loss. ``co_teaching``: ``small_loss`` by the losses of the *other* net, with a weight for each
    row and net. ``partition``: 1 where the first confidence in the label exceeds the second.
    ``agreement``: share of the ``k`` nearest rows with the row's own label. ``drop_harmful``: 1
    where the loss with an item (first) is at most the loss without it (second).

    Range        [0, 1]; at least ``minimum_rows`` rows have a weight above 0.
    Cost         a sort; "agreement" O(rows^2 dim).
    Assumes      evidence of the rows of one batch; ties go to the row that comes first.

    Parameters
    ----------
    rule : str, default="small_loss"
        Rule by which rows get their weights.
    remove : float, default=0.2
        Fraction of the rows that is left out after ``steps`` steps, in [0, 1]; set it to about the
        fraction of wrong labels.
    steps : int, default=1
        Number of steps until ``remove`` is reached.
    k : int, default=10
        Number of neighbours for ``agreement``.
    minimum_rows : int, default=1
        Smallest number of rows that keep a weight, at least 1.

    Examples
    --------
    >>> Select(remove=0.5)(torch.tensor([0.3, 2.0, 0.1, 0.4]), step=1).tolist()
    [1.0, 0.0, 1.0, 0.0]

    References
    ----------
    han2018coteaching
    """

    rule: Rule = "small_loss"
    remove: float = 0.2
    steps: int = 1
    k: int = 10
    minimum_rows: int = 1
    paper: ClassVar[str] = "han2018coteaching"
    variants: ClassVar[dict[str, str]] = {
        "partition": "roth2024fantastic",
        "noisy_labels": "chen2022compressing",
    }

    def __post_init__(self) -> None:
        rules = ("small_loss", "co_teaching", "partition", "agreement", "drop_harmful")
        if self.rule not in rules or not 0 <= self.remove <= 1 or self.steps < 1 or self.k < 1:
            raise InputError(
                "Select: expected a known rule, drop in [0, 1], steps and k of at least 1, got "
                f"{self.rule!r}, {self.remove}, {self.steps}, {self.k}."
            )

    @torch.no_grad()
    def __call__(
        self, evidence: Float[Tensor, "row ..."], other: Tensor | None = None, step: int = 0
    ) -> Float[Tensor, "row"] | tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
        """Return the weight of each row; for "co_teaching", the weights for each network.

        Parameters
        ----------
        evidence : Float[Tensor, "row ..."]
            Losses, confidences, or rows of a site for "agreement".
        other : Tensor, optional
            Losses or confidences of the other net, or labels for "agreement".
        step : int, default=0
        """
        if self.rule == "small_loss":
            return self._least(evidence, step)
        if other is None or len(other) != len(evidence):
            raise InputError(
                f"Select: expected a second value for each of {len(evidence)} rows with the rule "
                f"{self.rule!r}, got {'none' if other is None else len(other)}."
            )
        if self.rule == "co_teaching":
            return self._least(other, step), self._least(evidence, step)
        if self.rule == "agreement":
            return self._kept(self._agreement(evidence, other), evidence.flatten(1)[:, 0])
        gain = evidence - other if self.rule == "partition" else other - evidence
        right = gain > 0 if self.rule == "partition" else gain >= 0
        return self._kept(right.to(evidence), -gain)

    def _least(self, losses: Tensor, step: int) -> Tensor:
        share = 1 - self.remove * min(step / self.steps, 1.0)
        weight = torch.zeros_like(losses)
        n = max(round(share * len(losses)), min(self.minimum_rows, len(losses)))
        weight[losses.argsort(stable=True)[:n]] = 1.0
        return weight

    def _kept(self, weight: Tensor, cost: Tensor) -> Tensor:
        """Return the weights; if too few are positive, set the lowest-loss rows to 1."""
        if int((weight > 0).sum()) < min(self.minimum_rows, len(weight)):
            weight[cost.argsort(stable=True)[: self.minimum_rows]] = 1.0
        return weight

    def _agreement(self, rows: Tensor, label: Tensor) -> Tensor:
        k = min(self.k, len(rows) - 1)
        gap = torch.cdist(rows.double(), rows.double()).fill_diagonal_(torch.inf)
        near = gap.topk(k, largest=False).indices
        return (label[near] == label[:, None]).to(rows).mean(1)
