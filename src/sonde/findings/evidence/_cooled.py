"""The log loss of answers at the temperature that suits the rows that choose a change."""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.findings.evidence._shared import two_logits

RIDGE: Final = 1e-4
GRID, LEAST_LABELLED = tuple(2 ** (k / 16) for k in range(-64, 105)), 8


def cooled_loss(
    logits: Float[Tensor, "row class"], label: Int[Tensor, "row"], chooses: Bool[Tensor, "row"]
) -> Float[Tensor, "row"] | None:
    """Return the log loss of each row at one temperature for all; None if it cannot be known.

    A change that only makes answers surer, or less sure, is no repair of what is wrong: so changes
    are compared at the best temperature of each.

    Examples
    --------
    >>> logits, label = torch.tensor([[4.0, 0.0], [0.0, 8.0]]), torch.tensor([0, 1])
    >>> cooled_loss(logits.repeat(9, 1), label.repeat(9), torch.ones(18).bool())[0] < 0.01
    tensor(True)
    """
    logits = two_logits(logits).double()
    if len(label) != len(logits) or int(chooses.sum()) < LEAST_LABELLED:
        return None
    if not bool(torch.isfinite(logits).all()) or int(label.max()) >= logits.shape[1]:
        return None
    losses = [cross_entropy(logits / t, label, reduction="none") for t in GRID]
    return min(losses, key=lambda loss: float(loss[chooses].mean()))


def recalibrated_loss(
    logits: Float[Tensor, "row class"], label: Int[Tensor, "row"], chooses: Bool[Tensor, "row"]
) -> Float[Tensor, "row"] | None:
    """Return the log loss at one temperature or, if lower, with a bias of each class.

    What a bias of the classes repairs as well says nothing about the inputs.
    """
    cooled = cooled_loss(logits, label, chooses)
    if cooled is None:
        return None
    x = two_logits(logits).double()
    scale, moved = fitted_constants(x[chooses], label[chooses], torch.eye(x.shape[1]).double())
    biased = cross_entropy(scale * x + moved, label, reduction="none")
    better = float(biased[~chooses].mean()) < float(cooled[~chooses].mean())
    return biased if better else cooled


def fitted_constants(
    logits: Float[Tensor, "row class"], truth: Int[Tensor, "row"], basis: Float[Tensor, "class of"]
) -> tuple[Tensor, Tensor]:
    """Return the factor of all logits and the constants in a span that lower the loss most."""
    weight = torch.zeros(basis.shape[1] + 1, dtype=logits.dtype).requires_grad_()
    solver = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        solver.zero_grad()
        moved = logits * weight[-1].exp() + basis @ weight[:-1]
        found = cross_entropy(moved, truth) + RIDGE * weight[:-1].square().sum()
        found.backward()
        return float(found.detach())

    with torch.enable_grad():
        solver.step(loss)
    return weight.detach()[-1].exp(), basis @ weight.detach()[:-1]
