"""Two tasks on one trunk: predict the best point to split it.

Digits: name the digit, and say how much ink it has. Every cut is trained, to judge the cut that was
measured.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.recipes.where_tasks_part import where_tasks_part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DEPTH, WIDTH, INKS = 1_000, 400, 15, 4, 32, 5


@final
class WhereTasksPartStudy(Study):
    """Five cuts of a trunk with four layers, and the gradients' agreement at each layer."""

    name = "where-tasks-part"
    title = "does the conflict of gradients say where two tasks should part?"
    paper = "yu2020pcgrad"
    fidelity = "one width for all cuts: a later cut has fewer parameters"
    data = "digits with noise: 1,000 to train on and to measure, 797 to judge"
    claims = (
        Claim("deeper", "Gradients of the two tasks agree less in deeper layers.",
              "cosine at the first layer less that at the last"),
        Claim("near", "The layer of least agreement is within a layer of the best cut.",
              "1.5 less the distance in layers"),
        Claim("part", "Parting somewhere beats sharing all.",
              "mean accuracy of the best cut less that without a cut"),
    )  # fmt: skip
    null = Claim("one task", "A task and its copy agree as a task does with itself.",
                 "cosine less that of a task with itself, mean over layers")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train every cut; run the recipe on the fully shared trunk."""
        x, digit = shuffled_digits(seed)
        x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        ink = (x.mean(1).argsort().argsort() * INKS) // len(x)
        steps, score = TINY if tiny else STEPS, dict[int, float]()
        trunk: nn.Module = nn.Identity()
        for cut in range(DEPTH + 1):
            tick(f"cut {cut}")
            net = drawn(lambda cut=cut: _Net(cut), seed)

            def loss(rows: Tensor, net: "_Net" = net) -> Tensor:
                named, inked = net(x[rows])
                return cross_entropy(named, digit[rows]) + cross_entropy(inked, ink[rows])

            minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
            score[cut] = _score(net.eval(), x[FIT:], digit[FIT:], ink[FIT:])
            trunk = net.trunk
        tick("measure")
        both, one = (
            where_tasks_part(
                Model(trunk),
                [
                    {"x": v, "first": int(a), "second": int(b)}
                    for v, a, b in zip(x[:FIT], digit[:FIT], other[:FIT], strict=True)
                ],
                seed=seed,
                progress=False,
            )
            for other in (ink, digit)
        )
        agreement = [float(row["agreement"]) for row in both.rows]
        best = max(score, key=lambda cut: score[cut])
        least = min(range(DEPTH), key=lambda i: agreement[i])
        over = [float(row["agreement"]) - float(row["of one task"]) for row in one.rows]
        return {
            "deeper": agreement[0] - agreement[-1],
            "near": 1.5 - abs(best - least),
            "part": max(v for cut, v in score.items() if cut < DEPTH) - score[DEPTH],
            "one task": sum(over) / len(over),
            **{f"accuracy | cut {cut}": v for cut, v in score.items()},
            **{f"cosine | layer {i + 1}": v for i, v in enumerate(agreement)},
        }


class _Trunk(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _Net(nn.Module):
    """Layers below the cut are shared; those above exist twice."""

    def __init__(self, cut: int) -> None:
        super().__init__()
        self.trunk = _Trunk(cut)
        self.own = nn.ModuleList(
            nn.Sequential(*(_layer(i) for i in range(cut, DEPTH))) for _ in range(2)
        )
        self.heads = nn.ModuleList([nn.Linear(WIDTH, 10), nn.Linear(WIDTH, INKS)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(x)
        return [head(own(x)) for own, head in zip(self.own, self.heads, strict=True)]


def _layer(i: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH if i else 64, WIDTH), nn.ReLU())


@torch.no_grad()
def _score(net: _Net, x: Tensor, digit: Tensor, ink: Tensor) -> float:
    pairs = zip(net(x), (digit, ink), strict=True)
    return sum(float((said.argmax(1) == t).double().mean()) for said, t in pairs) / 2
