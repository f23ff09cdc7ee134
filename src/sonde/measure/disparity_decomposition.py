"""Information of predictions about a sensitive attribute, overall and inside each client.

The disparity overall and the disparity inside clients cannot both be removed in one place. The
decomposition says which part the two share and which part only one of them sees.
``fair_accuracy_limit`` gives the accuracy that is left if they are removed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor

ROUNDS = 5000
SWEEPS = 100
TOLERANCE = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class DisparityDecompositionResult(Result):
    """Global disparity in nats and its parts.

    ``overall = unique + redundant`` is the information of predictions about the attribute, and
    ``local = unique + masked`` this information once the client is known. ``unique`` is part of
    both, ``redundant`` comes from differences between clients and vanishes inside each client,
    ``masked`` appears only inside clients.
    """

    direction: Direction = "lower"
    unit: str = "nats"
    unique: float
    redundant: float
    masked: float
    local: float


def disparity_decomposition(
    attribute: Any, prediction: Any, client: Any, *, shuffles: int = 20, seed: int = 0
) -> DisparityDecompositionResult:
    """Return the predictions' information about an attribute, overall and inside clients.

    The value is ``I(Z; A)`` of the sensitive attribute ``Z`` and prediction ``A``. ``unique`` is
    the least ``I_Q(Z; A | S)`` over joint distributions ``Q`` with the marginals ``(Z, A)`` and
    ``(Z, S)`` of the data, found by alternating projections from a start without zeros.

    Range        [0, inf), nats; 0 = predictions do not tell. All parts are 0 or more.
    Cost         O(cells) for each of some hundred rounds.
    Assumes      few values of each: counts of ``(Z, A, S)`` are taken as they are, and the bias
                 of small counts is part of the null.
    Null         mean over shuffles of the attribute among the rows of a client: the redundant part
                 and the bias of counts, which remain if predictions tell nothing inside clients.

    Parameters
    ----------
    attribute : ints (row,)
        Protected attribute of each row.
    prediction : ints (row,)
        Predicted class of each row.
    client : ints (row,)
        Client that each row belongs to.
    shuffles : int, default=20
        How many shuffles; 0 for no null.
    seed : int, default=0
        Seed of the shuffles.

    Examples
    --------
    >>> z = [0, 0, 1, 1]
    >>> found = disparity_decomposition(z, [0, 1, 1, 0], [0, 1, 0, 1], shuffles=0)
    >>> [round(v / math.log(2), 6) for v in (float(found), found.local, found.masked)]
    [0.0, 1.0, 1.0]

    References
    ----------
    bertschinger2014unique, hamman2024disparity
    """
    named = {"attribute": attribute, "prediction": prediction, "client": client}
    counts = triple_counts("disparity_decomposition", named)
    z, a, s = (_codes("disparity_decomposition", name, c) for name, c in named.items())
    value, local, unique = decompose(counts)
    generator = torch.Generator().manual_seed(seed)
    nulls = [
        _information(_counts((_within(s, z, generator), a, s)).sum(2)) for _ in range(shuffles)
    ]
    return DisparityDecompositionResult(
        value=value,
        null=sum(nulls) / shuffles if shuffles else None,
        n=len(z),
        range=(0.0, math.inf),
        flags=("few_rows",) if len(z) < 5 * counts.numel() else (),
        conventions={
            "log": "e",
            "null": f"{shuffles} shuffles of the attribute within clients",
            "se": "none: not a smooth quantity",
        },
        unique=unique,
        redundant=value - unique,
        masked=local - unique,
        local=local,
    )


def decompose(counts: Float[Tensor, "attribute prediction client"]) -> tuple[float, float, float]:
    """Return ``I(Z; A)``, ``I(Z; A | S)`` and its minimum for equal marginals, in nats.

    Raises
    ------
    InputError
        If the counts do not have three axes, are negative, or have no finite sum above 0.
    """
    p = counts.double()
    if p.ndim != 3 or not bool((p >= 0).all()) or not 0 < float(p.sum()) < math.inf:
        raise InputError(
            "decompose: expected counts of at least 0 with a sum above 0, shape (attribute, "
            f"prediction, client), got shape {tuple(p.shape)} with sum {float(p.sum()):g}."
        )
    p = p / p.sum()
    return _information(p.sum(2)), _conditional(p), _least(p)


def _least(p: Float[Tensor, "attribute prediction client"]) -> float:
    """Return the minimum of ``I_Q(Z; A | S)`` with the pairs ``(z, a)``, ``(z, s)`` of ``p``."""
    own = p.sum((1, 2))
    first, second = p.sum(2), p.sum(1)
    q = _over(first[:, :, None] * second[:, None, :], own[:, None, None])
    before, value = math.inf, math.inf
    for _ in range(ROUNDS):
        before, value = value, _conditional(q)
        if before - value < TOLERANCE:
            break
        # nearest distribution of independent Z and A inside each client, then back to the pairs
        goal = _over(q.sum(1)[:, None, :] * q.sum(0)[None], q.sum((0, 1))[None, None])
        q = _fitted(goal, first, second)
    return min(before, value)


def _fitted(
    q: Float[Tensor, "attribute prediction client"],
    first: Float[Tensor, "attribute prediction"],
    second: Float[Tensor, "attribute client"],
) -> Float[Tensor, "attribute prediction client"]:
    """Return ``q`` after iterative proportional fitting to two of its marginals."""
    for _ in range(SWEEPS):
        q = q * _over(first, q.sum(2))[:, :, None]
        q = q * _over(second, q.sum(1))[:, None, :]
        if float((q.sum(2) - first).abs().max()) < TOLERANCE:
            break
    return q


def _over(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, 1.0), 0.0)


def _information(p: Float[Tensor, "row column"]) -> float:
    p = p / p.sum()
    apart = torch.outer(p.sum(1), p.sum(0))
    return float((torch.xlogy(p, p) - torch.xlogy(p, apart)).sum())


def _conditional(p: Float[Tensor, "attribute prediction client"]) -> float:
    """Return ``I(Z; A | S)``."""
    ends = torch.xlogy(p.sum(1), p.sum(1)).sum() + torch.xlogy(p.sum(0), p.sum(0)).sum()
    client = torch.xlogy(p.sum((0, 1)), p.sum((0, 1))).sum()
    return float(torch.xlogy(p, p).sum() + client - ends)


def triple_counts(owner: str, columns: Mapping[str, Any]) -> Float[Tensor, "first second third"]:
    """Return the number of rows of each triple of entries, values in ascending order.

    Raises
    ------
    InputError
        If the columns are not of one length, at least 1.
    """
    codes = [_codes(owner, name, column) for name, column in columns.items()]
    sizes = [len(c) for c in codes]
    if len(set(sizes)) > 1 or sizes[0] == 0:
        lengths = ", ".join(f"{n} of {name}" for n, name in zip(sizes, columns, strict=True))
        raise InputError(
            f"{owner}: expected as many entries of each column, at least 1, got {lengths}."
        )
    return _counts(codes)


def _codes(owner: str, name: str, column: Any) -> Int[Tensor, "row"]:
    codes = as_tensor(owner, column, name, InputError).cpu()
    if codes.ndim != 1:
        raise InputError(f"{owner}: expected {name} of shape (row,), got {tuple(codes.shape)}.")
    if not bool(torch.isfinite(codes.double()).all()):
        raise InputError(
            f"{owner}: expected a known value of {name} for each row, got NaN or infinity. Leave "
            "out such rows, or give them a separate number."
        )
    return torch.unique(codes, return_inverse=True)[1]


def _counts(codes: Sequence[Int[Tensor, "row"]]) -> Float[Tensor, "first second third"]:
    sizes = [int(c.max()) + 1 for c in codes]
    flat = (codes[0] * sizes[1] + codes[1]) * sizes[2] + codes[2]
    return torch.bincount(flat, minlength=math.prod(sizes)).reshape(sizes).double()


def _within(
    client: Int[Tensor, "row"], column: Int[Tensor, "row"], generator: torch.Generator
) -> Int[Tensor, "row"]:
    """Return a column shuffled within each client."""
    drawn = torch.rand(len(client), generator=generator, dtype=torch.float64)
    shuffled = torch.argsort(client + drawn)
    moved = torch.empty_like(column)
    moved[torch.argsort(client, stable=True)] = column[shuffled]
    return moved
