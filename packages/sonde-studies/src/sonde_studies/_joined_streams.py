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
    """Two nets of two layers whose states are fused at some depths; answers are averaged.

    With three heads the last states of both streams, side by side, have a head of their own, which
    answers where both views are there; alone, a stream answers by its own head.
    """

    def __init__(self, depths: tuple[int, ...], three_heads: bool = False) -> None:
        super().__init__()
        self.fused = nn.Linear(64, 10) if three_heads else None
        self.joins = nn.ModuleDict({str(i): Exchange("concat_gate", 32) for i in depths})
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(32, 10 if i == 2 else 32) for i in range(3)) for _ in range(2)
        )

    def forward(self, views: tuple[Tensor, ...], present: Tensor) -> Tensor:
        said, fused = self.answers(views, present)
        weight = present.to(fused) / present.sum(1, keepdim=True)
        mean = sum(w[:, None] * x for w, x in zip(weight.T, said, strict=True))
        return mean if self.fused is None else torch.where(present.all(1)[:, None], fused, mean)  # pyright: ignore

    def answers(self, views: tuple[Tensor, ...], present: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the answers of both streams, and of the head on both (without it, their sum)."""
        h = [view[:, None] for view in views]
        for i in range(3):
            if str(i) in self.joins:
                h = self.joins[str(i)](*h, present=tuple(present.T))
            below, h = h, [stream[i](x) for stream, x in zip(self.layers, h, strict=True)]  # pyright: ignore
            h = [torch.relu(x) for x in h] if i < 2 else h
        said = [x.squeeze(1) for x in h]
        last = torch.cat(below, 2).squeeze(1)  # pyright: ignore[reportPossiblyUnboundVariable]
        return said, said[0] + said[1] if self.fused is None else self.fused(last)


def joined_at(
    depths: tuple[int, ...],
    views: tuple[Tensor, ...],
    label: Tensor,
    seed: int,
    steps: int,
    three_heads: bool = False,
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
    three_heads : bool, default=False
        Train a head of each stream and one on both, each by a loss of its own, in place of the mean
        of both answers.

    Returns
    -------
    list of dict
        Accuracy in each of ``CASES``, on rows ``FIT`` to ``JUDGE`` and on the rows after them.
    """
    net = drawn(lambda: Streams(depths, three_heads), seed)

    def loss(rows: Tensor) -> Tensor:
        gone = torch.rand(len(rows))
        present = torch.stack([gone >= DROPPED, gone <= 1 - DROPPED], 1)
        seen = tuple(v[rows] for v in views)
        if not three_heads:
            return cross_entropy(net(seen, present), label[rows])
        said, fused = net.answers(seen, present)
        each = [cross_entropy(x, label[rows], reduction="none") for x in (*said, fused)]
        there = torch.cat([present, present.all(1, keepdim=True)], 1)
        return (torch.stack(each, 1) * there).sum() / there.sum()

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
