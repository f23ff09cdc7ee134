"""Sums of squared gradients of single rows, from one backward pass over the whole batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.tap.gradients.graph import Use
from sonde.tap.gradients.meeting import Finder, gradients_at
from sonde.tap.gradients.rules import GradientRule, rule_for

CHUNK_BYTES, MANY = 2**20, 16


def squares_together(
    finder: Finder, losses: Float[Tensor, "row"], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return sums over rows of squared gradients, and the parameters for which there are none yet.

    Parameters
    ----------
    finder : Finder
        Of this model.
    losses : Float[Tensor, "row"]
        Loss of each row, with its graph.
    parameters : mapping of str to Tensor
        What gradients are taken of.

    Returns
    -------
    dict of str to Tensor, tuple of str
        The second are parameters whose rows cannot be told apart in the batch.
    """
    meetings = finder.find(losses, parameters)
    nodes = {use.node: None for found in meetings.uses.values() for use in found}
    missing = [node for node in nodes if node not in meetings.gradients]
    gradients = {**meetings.gradients, **gradients_at(losses, missing)}
    sums: dict[str, Tensor] = {}
    alone = list(meetings.alone)
    with torch.no_grad():
        for name, uses in meetings.uses.items():
            parts = [(use, gradients[use.node]) for use in uses]
            rules = [(u, rule_for(u, g, len(losses))) for u, g in parts if g is not None]
            sound = [(use, rule) for use, rule in rules if rule is not None]
            if len(sound) < len(rules):
                alone.append(name)
            else:
                sums[name] = _summed(sound, parameters[name], len(losses))
    return sums, tuple(alone)


def squares_alone(
    losses: Callable[[int], Float[Tensor, "1"]], n: int, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return sums over rows of squared gradients by one backward pass for each row.

    Parameters
    ----------
    losses : callable
        From the number of a row to its loss.
    n : int
    parameters : mapping of str to Tensor
    """
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for row in range(n):
        loss = losses(row).sum()
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                sums[name] += gradient.double().square()
    return sums


def _summed(rules: list[tuple[Use, GradientRule]], parameter: Tensor, n: int) -> Tensor:
    """Return the sum over rows of a parameter's squared gradient, added up over its uses."""
    if not rules:
        return torch.zeros_like(parameter)
    use, rule = rules[0]
    if len(rules) > 1 or not _only_form(use):
        return _squares([(r.rows, partial(_back, u)) for u, r in rules], parameter.shape, n)
    squares = rule.squares()
    if squares is None:
        squares = _squares([(rule.rows, _as_it_is)], use.shape, n)
    return _back(use, squares[None])[0]


Making = tuple[Callable[[int, int], Tensor], Callable[[Tensor], Tensor]]
"""What gives the gradients of some rows by one use, and what puts them into a common form."""


def _squares(making: Sequence[Making], shape: Sequence[int], n: int) -> Tensor:
    """Return the sum over rows of the square of the sum over uses, few rows at a time."""
    size = max(1, CHUNK_BYTES // (4 * math.prod(shape)))
    total: Tensor | None = None
    for start in range(0, n, size):
        stop = min(n, start + size)
        rows = reduce(torch.add, (form(make(start, stop)) for make, form in making))
        total = rows.new_zeros(rows.shape[1:]) if total is None else total
        if len(rows) > MANY:
            total += rows.square().sum(0)
        else:  # each row and the total stay in the cache
            for row in rows:
                total.addcmul_(row, row)
    assert total is not None
    return total


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _only_form(use: Use) -> bool:
    """Return whether a parameter is only transposed or cast before it meets rows."""
    return all(node.name() in ("TBackward0", "ToCopyBackward0") for node, _ in use.chain)


def _back(use: Use, rows: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """Return the gradients of a parameter, from the gradients of a tensor made from it."""
    for node, index in reversed(use.chain):
        if node.name() == "TBackward0":
            rows = rows.mT
        elif node.name() != "ToCopyBackward0":
            kind = node._input_metadata[0].dtype
            given = [node(row.to(kind)) for row in rows]
            rows = torch.stack([g[index] if isinstance(g, tuple) else g for g in given]).to(rows)
    return rows
