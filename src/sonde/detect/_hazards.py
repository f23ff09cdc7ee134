"""What the hazards of single steps say about their whole trajectory."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.stats.sequences import by_example


@dataclass(frozen=True)
class StepChances(State):
    """Chances of trajectories (in ascending order of their numbers) and of rows (as given).

    ``wrong`` is the chance that some step is wrong; ``step`` is the likeliest first wrong step and
    ``row`` its row. ``first`` is the chance that the row's step is the first wrong step. ``alarm``
    is the chance that the first wrong step is this step or an earlier one: it never falls along a
    trajectory.
    """

    trajectory: Int[Tensor, "trajectory"]
    wrong: Float[Tensor, "trajectory"]
    step: Int[Tensor, "trajectory"]
    row: Int[Tensor, "trajectory"]
    first: Float[Tensor, "row"]
    alarm: Float[Tensor, "row"]

    def answers(self, threshold: float = 0.5) -> Int[Tensor, "trajectory"]:
        """Return each trajectory's first wrong step; -1 if ``wrong`` is not above ``threshold``."""
        return torch.where(self.wrong > threshold, self.step, -1)


def step_chances(
    hazard: Float[Tensor, "row"], trajectory: Int[Tensor, "_row"], position: Int[Tensor, "_row"]
) -> StepChances:
    """Return the chances of trajectories from the hazards of their steps, in any order.

    The hazard ``h_t`` is the chance that step ``t`` is wrong if no step before is wrong. The first
    wrong step is ``t`` with chance ``h_t prod_{s<t} (1 - h_s)``; no step is wrong with chance
    ``prod (1 - h_s)``. A hazard that is not finite makes its trajectory's ``wrong`` infinite.

    Parameters
    ----------
    hazard : Float[Tensor, "row"]
    trajectory, position : Int[Tensor, "row"]
        Which trajectory a row belongs to, and the number of its step.

    Raises
    ------
    InputError
        If a trajectory has a step twice.

    Examples
    --------
    >>> found = step_chances(torch.tensor([0.1, 0.5, 0.2]), torch.zeros(3).long(), torch.arange(3))
    >>> [round(v, 3) for v in found.first.tolist()], round(1 - float(found.wrong), 3)
    ([0.1, 0.45, 0.09], 0.36)
    """
    trajectory, position = trajectory.cpu(), position.cpu()
    steps = by_example(trajectory, position)
    found, order, member, counts = steps.example, steps.rows, steps.member, steps.counts
    place = steps.rank
    _check_once(trajectory[order], position[order])
    hazards = hazard.detach().to("cpu", torch.float64)[order]
    broken = ~torch.isfinite(hazards)
    table = torch.zeros(len(found), int(counts.max()) if len(counts) else 0, dtype=torch.float64)
    table[member, place] = hazards.masked_fill(broken, 1.0)
    none = (1.0 - table).cumprod(1)
    first = table * torch.cat([torch.ones_like(none[:, :1]), none[:, :-1]], dim=1)
    best = first.argmax(1) if len(found) else counts
    wrong = 1.0 - none[:, -1] if len(found) else none.sum(1)
    wrong[member[broken]] = math.inf
    row = order[steps.starts + best]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return StepChances(
        found,
        wrong,
        position[row],
        row,
        first[member, place][back],
        (1.0 - none)[member, place][back],
    )


def _check_once(trajectory: Int[Tensor, "row"], position: Int[Tensor, "row"]) -> None:
    twice = (trajectory[1:] == trajectory[:-1]) & (position[1:] == position[:-1])
    if bool(twice.any()):
        raise InputError(
            f"step_chances: expected each step of a trajectory once, got step "
            f"{int(position[1:][twice][0])} twice. Give each trajectory an id of its own."
        )
