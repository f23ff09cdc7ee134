"""A form of other columns or tensors that the rows cannot tell from the chosen form.

On a small or an easy table, a factor of one column may put as many answers right as the exchange of
two others that was the fault. Then neither is the cause.
"""

from collections.abc import Sequence
from typing import Final

from jaxtyping import Float, Int
from torch import Tensor

from sonde.findings.trial import LEVEL, PROVED, SURER, chance_of_gain

WORSE: Final = 0.1
"""Mean score by which a rival may lag behind, if the rows do not prove that it does."""


def does_as_well(
    rival: Float[Tensor, "row"],
    best: Float[Tensor, "row"],
    losses: tuple[Float[Tensor, "row"], Float[Tensor, "row"]] | None,
    group: Int[Tensor, "row"] | None,
) -> bool:
    """Return whether neither scores nor losses tell the chosen form from its rival.

    Parameters
    ----------
    rival, best : Float[Tensor, "row"]
        Scores of rows that chose neither; higher is better.
    losses : (Float[Tensor, "row"], Float[Tensor, "row"]) or None
        Losses of the rival and of the chosen form, which differ where the answers hardly do.
    group : Int[Tensor, "row"] or None
        Group of each row: groups are the units of the tests. None = every row.
    """
    lag = float((best - rival).double().mean())
    if lag > WORSE or (lag > 0 and chance_of_gain(rival, best, group) < PROVED):
        return False
    if losses is None:
        return True
    other, own = losses
    is_surer = float(own.mean()) < SURER * float(other.mean())
    return not (is_surer and chance_of_gain(-other, -own, group) < LEVEL)


def are_rivals(columns: Sequence[int], others: Sequence[int]) -> bool:
    """Return whether two forms of one table are of other columns, neither all of the other's.

    Examples
    --------
    >>> are_rivals((3, 7), (3, 5)), are_rivals((3, 7), (3,)), are_rivals((3,), ())
    (True, False, False)
    """
    one, two = set(columns), set(others)
    return bool(one and two) and not one <= two and not two <= one
