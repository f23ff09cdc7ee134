"""Join the front of one model to the back of another, with or without a linear map.

It says whether two models carry the same content, and, over several models, whether fronts or backs
make the difference. Nets of different seeds stitch well with a map: that alone shows little.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import widen_error
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor
from sonde.stats import error_if_all_agree, ridge_of_rows

Part = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class StitchResult(Result):
    """Mean accuracy of fronts with other models' backs; ``accuracy`` is for each pair.

    ``front`` and ``back`` are what each adds to the mean of the table, ``interaction`` is the rest;
    ``share_front``, ``share_back`` and ``share_interaction`` are their shares of the variance.
    ``null`` is the mean accuracy of the models as they are; ``right`` holds which answers are right
    (1) or wrong (0).
    """

    direction: Direction = "higher"
    accuracy: Float[Tensor, "front back"]
    front: Float[Tensor, "front"]
    back: Float[Tensor, "back"]
    interaction: Float[Tensor, "front back"]
    share_front: float
    share_back: float
    share_interaction: float
    right: Float[Tensor, "front back row"]


@torch.no_grad()
def stitch(
    fronts: Sequence[Part],
    backs: Sequence[Part],
    fitted: Any,
    held: Any,
    label: Any,
    how: Literal["map", "none"] = "map",
) -> StitchResult:
    """Return the accuracy of models' backs on other models' fronts.

    Range        [0, 1]; higher = the states are worth the same. Compare with ``null``, the models
                 as they are, and with ``how="none"``.
    Cost         a forward of each front on all rows, and of each back for each front.
    Assumes      front ``i`` and back ``i`` are the parts of model ``i``; without a map, one width.
    Differs      from the paper: the map is the ridge solution to the other model's states, not
                 trained on the task.

    Parameters
    ----------
    fronts : sequence of callable
        From inputs to rows (row, dim), such as ``net[:3]`` of a ``Sequential``.
    backs : sequence of callable
        From rows to logits.
    fitted : array
        Inputs that maps are fitted on.
    held : array
        Inputs to judge on.
    label : int array
        Classes of ``held``.
    how : {"map", "none"}, default="map"
        Form of the layer between front and back.

    Raises
    ------
    InputError
        If there are fewer than two models, or the numbers of fronts and backs differ, or those of
        labels and ``held`` inputs.

    Examples
    --------
    >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> same = [lambda x: x, lambda x: x.flip(1)]
    >>> [round(stitch(same, same, x, x, x.argmax(1), how).value, 4) for how in ("map", "none")]
    [1.0, 0.2333]

    References
    ----------
    bansal2021stitching
    """
    n = len(fronts)
    if n < 2 or len(backs) != n or how not in ("map", "none"):
        raise InputError(
            "stitch: expected the fronts and the backs of two models or more, and how 'map' or "
            f"'none', got {n} fronts, {len(backs)} backs, {how!r}."
        )
    x, new = (as_tensor("stitch", v, "inputs", InputError) for v in (fitted, held))
    truth = as_tensor("stitch", label, "labels", InputError)
    if len(truth) != len(new):
        raise InputError(f"stitch: expected {len(new)} labels, got {len(truth)}.")
    states = [front(x) for front in fronts]
    right = torch.zeros(n, n, len(new), dtype=torch.float64)
    for a, front in enumerate(fronts):
        rows = front(new)
        for b, back in enumerate(backs):
            given = rows
            if how == "map" and a != b:
                weight, bias = ridge_of_rows(states[a].double(), states[b].double())
                given = (rows.double() @ weight + bias).to(states[b].dtype)
            outputs = back(given)
            if outputs.shape[:-1] != truth.shape or not bool(torch.isfinite(outputs).all()):
                raise InputError(
                    f"stitch: expected finite logits of shape {(*truth.shape, 'class')}, got "
                    f"{tuple(outputs.shape)} from back {b} on front {a}"
                    f"{', not all finite' if outputs.shape[:-1] == truth.shape else ''}. Leave out "
                    "rows that are not finite, and give one label for each row."
                )
            right[a, b] = (outputs.argmax(-1) == truth).double().cpu()
    return of_table(right)


def of_table(right: Float[Tensor, "front back row"]) -> StitchResult:
    """Return the two-way analysis of a table of correct (1) and wrong (0) answers."""
    n, n_rows = len(right), right.shape[2]
    table = right.mean(2)
    other = ~torch.eye(n, dtype=torch.bool)
    each = right[other].mean(0)
    mean = table.mean()
    front, back = table.mean(1) - mean, table.mean(0) - mean
    rest = table - mean - front[:, None] - back
    squares = [float(n * front.square().sum()), float(n * back.square().sum())]
    squares.append(float(rest.square().sum()))
    total = sum(squares)
    shares = [s / total if total > 0 else math.nan for s in squares]
    return StitchResult(
        right=right,
        value=float(table[other].mean()),
        se=_error(each),
        null=float(table.diagonal().mean()),
        n=n_rows,
        range=(0.0, 1.0),
        conventions={"null": "the unchanged models", "se": "spread over rows"},
        accuracy=table,
        front=front,
        back=back,
        interaction=rest,
        share_front=shares[0],
        share_back=shares[1],
        share_interaction=shares[2],
    )


def _error(each: Float[Tensor, "row"]) -> float | None:
    """Return the mean's standard error, from the exact interval if all rows agree."""
    if len(each) < 2:
        return None
    if bool((each == each[0]).all()):
        return error_if_all_agree(len(each))
    return widen_error(float(each.std() / math.sqrt(len(each))), len(each))
