"""Columns inverted in the backward pass: their cost, and probes of each column.

Digits in a net of a few columns; what memory saves is counted, not felt, at this size.
"""

import time
from typing import Any, final

import torch
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sonde.layers import Reversible
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again
from sonde_studies.parts.heads import head_accuracy
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy as right
from sonde_studies.worlds.learning import drawn, learn_labels

FIT, STEPS, TINY, DIM, COLUMNS = 1_000, 200, 8, 24, 6


@final
class ReversibleColumnsStudy(Study):
    """Six columns of two levels, trained with and without stored activations."""

    name = "reversible-columns"
    title = "do inverted columns train like stored ones, with flat memory?"
    paper = "cai2023revcol"
    fidelity = "levels of one width; the input stands in the lowest level alone"
    data = "digits: 1,000 to train on, 797 to judge"
    claims = (
        Claim("as residual", "Columns are right as often as residual blocks of as many numbers, to "
              "a point.", "accuracy, inverted columns less residual blocks, and 0.01",
              arms=("inverted", "residual")),
        Claim("columns", "The last column's top level says the digit better than the first's.",
              "accuracy of a linear probe, last less first column",
              arms=("inverted", "inverted, first column")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy, inverted columns, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both ways, count, probe and invert."""
        x, label = shuffled_digits(seed)
        nets, accuracy, seconds = dict[str, Any](), dict[str, float](), dict[str, float]()
        for arm in ("inverted", "stored", "residual"):
            tick(arm)
            began = time.process_time()
            nets[arm] = _learned(arm, x, label, seed, TINY if tiny else STEPS)
            seconds[arm] = time.process_time() - began
            accuracy[arm] = right(nets[arm], x[FIT:], label[FIT:])
        tick("labels by lot")
        lots = by_lot(x, seed, TINY if tiny else STEPS)
        kept = {arm: _kept(nets[arm], x[:64]) for arm in ("inverted", "stored")}
        note_again("inverted, first column", "inverted")
        probes = _probes(nets["inverted"], x, label)
        with torch.no_grad():
            start = nets["inverted"].levels(x[:64])
            back = nets["inverted"].columns.inverse(nets["inverted"].columns(start))
        lost = (back - start).square().mean().sqrt() / start.square().mean().sqrt()
        return {
            "numbers kept, share of stored columns": kept["inverted"] / kept["stored"],
            "as residual": accuracy["inverted"] - accuracy["residual"] + 0.01,
            "columns": probes[-1] - probes[0],
            "lots": lots,
            "error of the inverse, relative": round(float(lost), 4),
            **{f"accuracy | {arm}": v for arm, v in accuracy.items()},
            **{f"seconds | {arm}": v for arm, v in seconds.items()},
            **{f"probe | column {i + 1}": v for i, v in enumerate(probes)},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of inverted columns on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    return right(_learned("inverted", x, lots, seed, steps), x[FIT:], lots[FIT:]) - 0.1


def _learned(arm: str, x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Module:
    net = drawn(lambda: _Residual() if arm == "residual" else _Net(arm != "stored"), seed)
    learn_labels(net, x[:FIT], label[:FIT], steps=steps, seed=seed)
    return net


class _Net(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, DIM), nn.Linear(DIM, 10)
        self.columns = Reversible(DIM, 2, COLUMNS, recompute=recompute)

    def levels(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return torch.stack([h, torch.zeros_like(h)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.columns(self.levels(x))[:, 1])


class _Residual(nn.Module):
    """Residual blocks one after another, as many as all columns together have levels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, DIM), nn.Linear(DIM, 10)
        self.blocks = nn.ModuleList(_block() for _ in range(2 * COLUMNS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def _block() -> nn.Module:
    """Return a perceptron that starts as zero, as those of the columns do."""
    last = nn.Linear(2 * DIM, DIM)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), last)


def _kept(net: Any, x: Tensor) -> int:
    """Return how many numbers autograd stores for the columns, without weights."""
    start, seen = net.levels(x).detach().requires_grad_(), dict[int, int]()
    weights = {p.data_ptr() for p in net.parameters()}

    def keep(t: Tensor) -> Tensor:
        if t.data_ptr() not in weights:
            seen[t.data_ptr()] = t.numel()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        held = net.columns(start)
    del held
    return sum(seen.values())


def _probes(net: Any, x: Tensor, label: Tensor) -> list[float]:
    """Return the accuracy of a probe of the top level after each column."""
    found, head = list[float](), LogisticRegression(max_iter=500)
    with torch.no_grad():
        state = net.levels(x)
        for column in net.columns.columns:
            state = column(state)
            found.append(head_accuracy(head, state[:, 1], label, FIT))
    return found
