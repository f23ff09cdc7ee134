"""Experts for halves of the digits on one frozen embedding, merged by the mean of their logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Experts
from sonde_studies._added_blocks import KINDS, PIXELS, WIDTH
from sonde_studies.arms import part
from sonde_studies.worlds.learning import drawn, minimise


def specialists(
    steps: int, seed: int, x: Tensor, label: Tensor, n_fit: int, rate: float
) -> dict[str, float]:
    """Return accuracies of experts for digits below five and from five on, and of their mean.

    They share a linear head, so the mean of their outputs is that of their logits. ``all rows`` is
    one expert that learns from all digits, for as many steps.
    """

    def learned(kind: Tensor) -> Callable[[Tensor | None], float]:
        n = int(kind.max()) + 1
        first = drawn(lambda: nn.Linear(PIXELS, WIDTH), seed)
        head = drawn(lambda: nn.Linear(WIDTH, KINDS), seed + 1)
        experts = drawn(lambda: Experts(WIDTH, n, router="label", k=1), seed + 2)
        first.requires_grad_(False)

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(head(experts(first(x[rows]), kind[rows])), label[rows])

        weights = [*experts.parameters(), *head.parameters()]
        minimise(loss, weights, n_fit, steps=steps, seed=seed + 10, rate=rate)

        @torch.no_grad()
        def right(asked: Tensor | None) -> float:
            said = head(experts(first(x[n_fit:]), asked)).argmax(1)
            return float((said == label[n_fit:]).double().mean())

        return right

    with part("two specialists"):
        two = learned((label >= 5).long())
    with part("one expert"):
        one = learned(torch.zeros_like(label))
    low = torch.zeros_like(label[n_fit:])
    return {"mean": two(None), "low": two(low), "high": two(low + 1), "all rows": one(None)}
