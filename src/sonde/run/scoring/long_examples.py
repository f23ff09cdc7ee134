"""P-values of examples that are longer than any example that calibrated: by their parts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.reduction import OWN, Reduced
from sonde.stats import CalibratedScorer
from sonde.stats.calibrated import Lengths

FALLS_WITH_ROWS = ("mean", OWN)


def p_of_examples(
    scorer: CalibratedScorer,
    found: Reduced,
    label: Int[Tensor, "example"],
    scores: Float[Tensor, "row"],
    example: Int[Tensor, "_row"],
    how: str,
) -> Float[Tensor, "example"]:
    """Return the p-value of each example's score.

    The largest of many scores is larger than that of few. An example with more rows than any that
    calibrated is therefore cut into parts of their mean length, and its p-value is the smallest of
    its parts times their number (Bonferroni): the rate of false alarms holds, whatever the parts
    have in common. A mean of scores does not grow with the rows and is compared as it is.
    """
    p, lengths = scorer.p_value(found.score, label), scorer.lengths
    if lengths is None or how in FALLS_WITH_ROWS:
        return p
    n_rows = torch.bincount(example)
    long = n_rows > lengths.longest
    if not bool(long.any()):
        return p
    taken = torch.nonzero(long[example]).flatten()
    part, owner, n_parts = parts_of(example[taken], lengths)
    pieces = scorer.reduced(scores[taken], part, how)
    place = torch.full((len(n_rows),), -1)
    place[found.example] = torch.arange(len(found.example))
    at = place[owner]
    least = torch.ones_like(p).scatter_reduce(
        0, at, scorer.p_value(pieces.score, label[at]), "amin", include_self=True
    )
    return torch.where(long[found.example], (least * n_parts[found.example]).clamp(max=1.0), p)


def parts_of(
    example: Int[Tensor, "row"], lengths: Lengths
) -> tuple[Int[Tensor, "_row"], Int[Tensor, "part"], Int[Tensor, "example"]]:
    """Return the part of each row, the example of each part, and the number of parts of examples.

    Parts hold consecutive rows, nearly as many each, and at most the mean length.
    """
    n_rows = torch.bincount(example)
    order = torch.argsort(example, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (n_rows.cumsum(0) - n_rows)[example[order]]
    n_parts = (n_rows / lengths.mean).ceil().long()
    start = n_parts.cumsum(0) - n_parts
    part = start[example] + rank * n_parts[example] // n_rows[example]
    return part, torch.repeat_interleave(torch.arange(len(n_rows)), n_parts), n_parts
