"""Train a network level by level against a feedback network, without full backpropagation.

A study of learning without global backpropagation, and of memory that does not grow with depth. For
the best accuracy train by backpropagation.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, elu, normalize, one_hot

from sonde.core.autocast import in_float32, widened, without_autocast
from sonde.core.errors import InputError
from sonde.engine.steps import seeded


@final
class CounterCurrent(nn.Module):
    """Sum of the losses of all levels, each with gradients for its own level only.

    Part ``l`` of the forward net computes ``A_l`` from ``A_(l-1)``. The feedback net computes
    ``B_l`` from ``B_(l+1)``, starting from the one-hot labels. No gradient passes between levels in
    either net. The loss of a level is the mean over pairs of rows of ``(a_i b_j - y_ij)^2``, where
    ``y_ij`` is 1 if both rows have the same label; the loss of the last part is the cross entropy
    of its logits.

    Range        [0, inf); lower = rows of one class alike in both nets.
    Cost         a forward and a backward pass of each part alone; O(rows^2 width) a level.
    Assumes      parts that run one after the other, the last of them to logits.
    Differs      from the paper: the last level has a cross entropy.
    Batching     pair.

    Parameters
    ----------
    parts : sequence of nn.Module
        Parts of the forward net; they are used directly, not copied.
    widths : sequence of int
        Size of the output of each part but the last, for one example.
    n_classes : int
        Number of classes.
    how : {"cosine", "gram"}, default="cosine"
        Rows scaled to length 1, or products divided by the width.
    seed : int, default=0
        Seed of the feedback net's initial weights.

    Examples
    --------
    >>> parts = [nn.Linear(4, 6), nn.Linear(6, 3)]
    >>> local = CounterCurrent(parts, [6], 3)
    >>> len(local.levels(torch.ones(2, 4), torch.tensor([0, 2])))
    2

    References
    ----------
    countercurrent2024
    """

    paper: ClassVar[str] = "countercurrent2024"

    def __init__(
        self,
        parts: Sequence[nn.Module],
        widths: Sequence[int],
        n_classes: int,
        how: Literal["cosine", "gram"] = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(parts) < 2 or len(widths) != len(parts) - 1 or how not in ("cosine", "gram"):
            raise InputError(
                "CounterCurrent: expected two parts or more, a width for each but the last, and "
                f"how 'cosine' or 'gram', got {len(parts)} parts, widths {list(widths)}, {how!r}."
            )
        self.parts, self.how, self.n_classes = nn.ModuleList(parts), how, n_classes
        self.seed = seed
        ends = [n_classes, *reversed(widths)]
        with seeded(seed):
            self.feedback = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(ends))

    def forward(
        self, inputs: Float[Tensor, "row *axes"], label: Int[Tensor, "row"]
    ) -> Float[Tensor, ""]:
        """Return the sum of the losses of all levels."""
        return torch.stack(self.levels(inputs, label)).sum()

    def levels(
        self, inputs: Float[Tensor, "row *axes"], label: Int[Tensor, "row"]
    ) -> list[Float[Tensor, ""]]:
        """Return the loss of each level, from the inputs up."""
        down = [one_hot(label, self.n_classes).to(next(self.feedback.parameters()))]
        for layer in self.feedback:
            down.append(elu(layer(down[-1].detach())))
        alike = (label[:, None] == label).to(down[0])
        losses, a = list[Tensor](), inputs
        *inner, last = self.parts
        for part, b in zip(inner, reversed(down[1:]), strict=True):
            a = part(a.detach())
            rows = a.flatten(1)
            if rows.shape[1] != b.shape[1]:
                raise InputError(
                    f"CounterCurrent: expected width {b.shape[1]} at level {len(losses)}, got "
                    f"{rows.shape[1]}. Pass the actual widths of the parts."
                )
            losses.append(self._error(rows, b, alike))
        return [*losses, _cross_entropy(last(a.detach()), label)]

    @torch.no_grad()
    def centre(self) -> None:
        """Subtract from weight gradients their mean over inputs; call between backward and step."""
        for p in self.parameters():
            if p.grad is not None and p.ndim > 1:
                p.grad -= p.grad.mean(tuple(range(1, p.ndim)), keepdim=True)

    def _error(self, a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        """Return the mean over pairs of rows, computed in the parts' own dtypes."""
        a, b = widened((a, b))
        with without_autocast(a.device):
            if self.how == "cosine":
                products = normalize(a, dim=1) @ normalize(b, dim=1).T
            else:
                products = a @ b.T / a.shape[1]
            return (products - alike).square().mean()


@in_float32
def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return cross_entropy(logits, label)
