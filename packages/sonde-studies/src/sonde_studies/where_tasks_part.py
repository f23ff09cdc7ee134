"""Two tasks on one trunk: where they should part, measured before it is tried.

Digits: name the digit, and undo noise. Every cut is trained, to judge the one that was measured.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from sonde.measure import gradient_conflict
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DEPTH, WIDTH, BATCHES = 1_000, 500, 15, 4, 48, 24


@final
class WhereTasksPartStudy(Study):
    """Five cuts of a trunk of four layers, and the conflict of gradients at each layer."""

    name = "where-tasks-part"
    title = "does the conflict of gradients say where two tasks should part?"
    paper = "yu2020pcgrad"
    fidelity = "one width for all cuts: a later cut has fewer parameters"
    data = "digits with noise: 1,000 to train on, 797 to judge"
    claims = (
        Claim("deeper", "Gradients of the two tasks agree less in deeper layers.",
              "mean cosine at the first layer less that at the last"),
        Claim("near", "The layer of least agreement is within a layer of the best cut.",
              "1.5 less the distance in layers"),
        Claim("part", "Parting somewhere beats sharing all.",
              "score of the best cut less that without a cut"),
    )  # fmt: skip
    null = Claim("one task", "Halves of one task agree as much in deep layers as in early ones.",
                 "mean cosine of halves, first layer less last")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train every cut; measure the conflict on the trunk that shares all."""
        x, label = shuffled_digits(seed)
        noise = 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        steps, score = TINY if tiny else STEPS, dict[int, float]()
        conflict, halves = list[float](), list[float]()
        for cut in range(DEPTH + 1):
            tick(f"cut {cut}")
            net = drawn(lambda cut=cut: _Net(cut), seed)

            def loss(rows: Tensor, net: "_Net" = net) -> Tensor:
                named, clean = net(x[rows] + noise[rows])
                return cross_entropy(named, label[rows]) + 10 * mse_loss(clean, x[rows])

            minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
            score[cut] = _score(net, x[FIT:] + noise[FIT:], x[FIT:], label[FIT:])
            if cut == DEPTH:
                conflict = _conflicts(net, x + noise, x, label, False)
                halves = _conflicts(net, x + noise, x, label, True)
        best = max(score, key=lambda cut: score[cut])
        least = min(range(DEPTH), key=lambda i: conflict[i])
        return {
            "deeper": conflict[0] - conflict[-1],
            "near": 1.5 - abs(best - least),
            "part": max(v for cut, v in score.items() if cut < DEPTH) - score[DEPTH],
            "one task": halves[0] - halves[-1],
            **{f"score | cut {cut}": v for cut, v in score.items()},
            **{f"cosine | layer {i + 1}": v for i, v in enumerate(conflict)},
        }


class _Net(nn.Module):
    """Layers below the cut are shared; those above exist twice."""

    def __init__(self, cut: int) -> None:
        super().__init__()
        self.shared = nn.ModuleList(_layer(i) for i in range(cut))
        self.own = nn.ModuleList(
            nn.Sequential(*(_layer(i) for i in range(cut, DEPTH))) for _ in range(2)
        )
        self.heads = nn.ModuleList([nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 64)])

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.shared:
            x = layer(x)
        return [head(own(x)) for own, head in zip(self.own, self.heads, strict=True)]


def _layer(i: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH if i else 64, WIDTH), nn.ReLU())


@torch.no_grad()
def _score(net: _Net, x: Tensor, clean: Tensor, label: Tensor) -> float:
    """Return the mean of accuracy and of the share of noise that was taken away."""
    named, made = net(x)
    left = (made - clean).square().sum() / (x - clean).square().sum()
    return float(((named.argmax(1) == label).double().mean() + 1 - left) / 2)


def _conflicts(net: _Net, x: Tensor, clean: Tensor, label: Tensor, one_task: bool) -> list[float]:
    """Return the mean cosine of two tasks' gradients at each layer of the trunk, over batches."""
    found = list[float]()
    rows, task = [list[Tensor]() for _ in range(DEPTH)], list[int]()
    for batch in torch.arange(FIT).split(FIT // BATCHES)[:BATCHES]:
        sides = [batch[::2], batch[1::2]] if one_task else [batch, batch]
        for side, part in enumerate(sides):
            named, made = net(x[part])
            first = cross_entropy(named, label[part])
            value = first if one_task or side == 0 else mse_loss(made, clean[part])
            weights = [layer.get_parameter("0.weight") for layer in net.shared]
            for i, grad in enumerate(torch.autograd.grad(value, weights)):
                rows[i].append(grad.flatten())
            task.append(side)
    for layer in rows:
        stacked = torch.stack(layer)
        found.append(float(gradient_conflict(stacked, torch.tensor(task)).value))
    return found
