"""A classifier of two views: a network for each, which exchange states at chosen layers.

In training views are left out at random, so that it also answers from one view.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Exchange
from sonde_studies.worlds.learning import drawn, minimise

FIT, JUDGE, DROPPED = 700, 1_000, 0.3
"""Rows that train; rows before those that judge: what lies between chooses."""
CASES = {"both": (True, True), "up alone": (True, False), "down alone": (False, True)}


class Streams(nn.Module):
    """Two nets of two layers whose states are fused at some depths; answers are averaged."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.joins = nn.ModuleDict({str(i): Exchange("concat_gate", 32) for i in depths})
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(32, 10 if i == 2 else 32) for i in range(3)) for _ in range(2)
        )

    def forward(self, views: tuple[Tensor, ...], present: Tensor) -> Tensor:
        h = [view[:, None] for view in views]
        for i in range(3):
            if str(i) in self.joins:
                h = self.joins[str(i)](*h, present=tuple(present.T))
            h = [stream[i](x) for stream, x in zip(self.layers, h, strict=True)]  # pyright: ignore
            h = [torch.relu(x) for x in h] if i < 2 else h
        weight = present.to(h[0]) / present.sum(1, keepdim=True)
        return sum(w[:, None] * x.squeeze(1) for w, x in zip(weight.T, h, strict=True))  # pyright: ignore


def joined_at(
    depths: tuple[int, ...], views: tuple[Tensor, ...], label: Tensor, seed: int, steps: int
) -> list[dict[str, float]]:
    """Train with views dropped at random; return accuracies on choosing and on judging rows.

    Parameters
    ----------
    depths : tuple of int
        Before which of three layers the streams meet.
    views : tuple of Tensor (row, dim)
    label : Tensor (row,)
    seed, steps : int
        Of the weights and the batches, and the steps of training.

    Returns
    -------
    list of dict
        Accuracy in each of ``CASES``, on rows ``FIT`` to ``JUDGE`` and on the rows after them.
    """
    net = drawn(lambda: Streams(depths), seed)

    def loss(rows: Tensor) -> Tensor:
        gone = torch.rand(len(rows))
        present = torch.stack([gone >= DROPPED, gone <= 1 - DROPPED], 1)
        return cross_entropy(net(tuple(v[rows] for v in views), present), label[rows])

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    found = list[dict[str, float]]()
    for rows in (slice(FIT, JUDGE), slice(JUDGE, None)):
        held = tuple(v[rows] for v in views)
        with torch.no_grad():
            said = {
                case: net(held, torch.tensor([seen] * len(held[0]))).argmax(1)
                for case, seen in CASES.items()
            }
        found.append({case: float((y == label[rows]).double().mean()) for case, y in said.items()})
    return found
