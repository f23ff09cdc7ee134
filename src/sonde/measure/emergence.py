"""When in training the features of the final layer can first be predicted from that layer.

For how late in the network features can be read off, see ``feature_complexity``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.instrument import SAMPLE
from sonde.core.result import Direction, Result
from sonde.measure.feature_complexity import EMERGED, Features, feature_complexity


@final
@dataclass(frozen=True, kw_only=True)
class EmergenceResult(Result):
    """Mean fraction of features' variance that earlier checkpoints do not explain.

    ``lateness`` is that share for each feature, ``step`` the first checkpoint that explains nine
    tenths of the feature (the last checkpoint if no earlier one does), ``r2`` the adjusted share
    that each earlier checkpoint explains.
    """

    title: ClassVar[str] = "Fraction of each feature's variance that a checkpoint explains"
    direction: Direction = "higher"
    lateness: Float[Tensor, "feature"]
    step: Int[Tensor, "feature"]
    steps: Int[Tensor, "checkpoint"]
    r2: Float[Tensor, "checkpoint feature"]

    def chart(self) -> Chart:
        """Return a chart with a line for each feature."""
        rows = [
            {"step": s, "feature": j, "r2": v}
            for s, row in zip(self.steps.tolist(), self.r2.tolist(), strict=True)
            for j, v in enumerate(row)
        ]
        return curves(self.title, rows, "step", "r2", by="feature")


def emergence(
    checkpoints: Mapping[int, Any],
    *,
    group: Any = None,
    features: Features = "principal",
    k: int = 20,
    m: int = SAMPLE,
) -> EmergenceResult:
    """Return when a trained layer's features emerge, from its states at training steps.

    ``1 - mean_t max(R2_t, 0)`` over the earlier checkpoints, with the share ``R2_t`` of a feature's
    variance that least squares from the states at step ``t`` explain, adjusted for the number of
    units.

    Range        [0, 1]; 0 = there from the first checkpoint on; higher = emerges late. It depends
                 on which steps are given: compare features, not trainings with other steps.
    Cost         O(checkpoints (rows dim^2 + dim^3)).
    Assumes      rows that correspond, more of them than ``dim + 1`` (flag ``few_rows``).
    Differs      from the paper: least squares in place of trained probes.

    Parameters
    ----------
    checkpoints : mapping of int to array (row, dim)
        States of one layer over the same rows at each step; features are those of the last step.
    group : array (row,), optional
        Which rows belong together: the error takes them as one.
    features : {"principal", "units"}, default="principal"
        The principal directions of the last states, or their units.
    k : int, default=20
        How many principal directions.
    m : int, default=2048
        Rows of the sample.

    Raises
    ------
    InputError
        If there are fewer than two checkpoints.

    Examples
    --------
    >>> end = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> half = end * torch.tensor([1.0, 1.0, 0.0])
    >>> found = emergence({0: half[:, :1], 100: half, 500: end}, features="units")
    >>> found.step.tolist(), found.lateness.round(decimals=1).tolist()
    ([0, 100, 500], [0.0, 0.5, 1.0])

    References
    ----------
    fel2024complexity
    """
    steps = sorted(checkpoints)
    if len(steps) < 2:
        raise InputError(f"emergence: expected at least two checkpoints, got {len(steps)}.")
    named = {str(s): checkpoints[s] for s in steps}
    complexity = feature_complexity(named, group=group, features=features, k=k, m=m)
    reached = complexity.r2 >= EMERGED
    first = torch.where(reached.any(0), reached.int().argmax(0), len(steps) - 1)
    return EmergenceResult(
        value=float(complexity),
        se=complexity.se,
        null=complexity.null,
        n=complexity.n,
        range=(0.0, 1.0),
        flags=complexity.flags,
        conventions={**complexity.conventions, "emerged": f"R2 of {EMERGED:g}"},
        lateness=complexity.complexity,
        step=torch.tensor(steps)[first],
        steps=torch.tensor(steps[:-1]),
        r2=complexity.r2,
    )
