"""Test whether units found by path interventions are necessary and reproducible.

A toy: a small MLP on digits. Graphs are found on one half of a class's rows and judged on the
other.
"""

from contextlib import ExitStack
from typing import final

import torch
from torch import Tensor, nn

import sonde
from sonde.edit import ClampUnit
from sonde.explain import CausalGraph, GradTimesInput, Objective
from sonde_studies._digits import pixels, train
from sonde_studies.study import Claim, Figures, Study, Tick

LAYERS = ["0", "2", "4"]
UNITS, READERS = {"0": 64, "2": 32}, {"0": "2:in", "2": "4:in"}
STEPS, RATE = 300, 3e-3
FIND = CausalGraph(quantile=0.9, baseline="zero")


@final
class CausalGraphStudy(Study):
    """Ten classes of digits, 64 and 32 hidden units, and random units as the control arm."""

    name = "causal-graph"
    title = "do path interventions find the units that a class needs, the same ones in other rows?"
    paper = "pathinterventions"
    fidelity = "the abstract gives no formulas: the definition is ours; nothing was chosen on test"
    data = "digits: 1,200 for training, the others for the graphs"
    claims = (
        Claim(
            "needed",
            "In fresh rows a class is lost more often without its graph's units than without as "
            "many others.",
            "accuracy without random units less that without the graph's, mean over classes",
            above=0.1,
        ),
        Claim(
            "stabler",
            "Effects of units agree better between two halves of the rows than gradient times "
            "activation.",
            "difference of rank correlations between halves, mean over classes",
        ),
    )
    null = Claim(
        "random against random",
        "Two draws of random units cost a class the same.",
        "accuracy without the one draw less that without the other, mean over classes",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, find the graph of each class, and ablate its units."""
        tick("train")
        x, kind = pixels()
        label = torch.from_numpy(kind)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        n = 300 if tiny else 1200
        net = _net(seed)
        train(net, x[order[:n]], label[order[:n]], seed, STEPS // 10 if tiny else STEPS, RATE)
        net.eval()
        fresh, known = x[order[n:]], label[order[n:]]
        classes = range(2 if tiny else 10)
        figures: dict[str, list[float]] = {}
        for c in classes:
            tick(f"class {c}")
            rows = fresh[known == c]
            rows = rows[net(rows).argmax(1) == c][:60]
            for key, value in _of_class(net, rows, c, seed).items():
                figures.setdefault(key, []).append(value)
        return {key: sum(values) / len(values) for key, values in figures.items()}


def _net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        )


def _of_class(net: nn.Sequential, rows: Tensor, c: int, seed: int) -> dict[str, float]:
    half = len(rows) // 2
    parts = (rows[:half], rows[half:])
    units = FIND.explain(net, parts[0], site=LAYERS, target=c).units
    graph = {layer: [j for name, j in units if name == layer] for layer in UNITS}
    draw = torch.Generator().manual_seed(seed)
    orders = [{layer: torch.randperm(n, generator=draw).tolist() for layer, n in UNITS.items()}
              for _ in range(2)]  # fmt: skip
    others = [{layer: own[: len(graph[layer])] for layer, own in one.items()} for one in orders]
    rest = {layer: sorted(set(range(n)) - {*graph[layer]}) for layer, n in UNITS.items()}
    lost = _kept(net, parts[1], c, graph)
    random = [_kept(net, parts[1], c, one) for one in others]
    effects = [_effects(net, part, c) for part in parts]
    slopes = [_slopes(net, part, c) for part in parts]
    return {
        "needed": random[0] - lost,
        "stabler": _rank_correlation(*effects) - _rank_correlation(*slopes),
        "random against random": random[0] - random[1],
        "accuracy | without the graph": lost,
        "accuracy | without random units": random[0],
        "accuracy | graph alone": _kept(net, parts[1], c, rest),
        "rank correlation | effects": _rank_correlation(*effects),
        "rank correlation | gradient x activation": _rank_correlation(*slopes),
    }


def _kept(net: nn.Sequential, rows: Tensor, c: int, off: dict[str, list[int]]) -> float:
    """Return the share of rows that keep their class while units of each layer are silent."""
    with ExitStack() as edits:
        for layer, units in off.items():
            if units:
                edits.enter_context(
                    sonde.editing(net, ClampUnit(tuple(units), 0.0), READERS[layer])
                )
        return float((net(rows).argmax(1) == c).double().mean())


def _effects(net: nn.Sequential, rows: Tensor, c: int) -> Tensor:
    """Return the effect of each unit of the first layer on all units of the second."""
    found = CausalGraph(threshold=0.0, baseline="zero").explain(net, rows, site=LAYERS, target=c)
    total = torch.zeros(64, dtype=torch.float64)
    for ((layer, j), _), value in zip(found.edges, found.value, strict=True):
        if layer == LAYERS[0]:
            total[j] += value
    return total


def _slopes(net: nn.Sequential, rows: Tensor, c: int) -> Tensor:
    found = GradTimesInput().explain(net, rows, objective=Objective(target=c), site="1")
    return torch.as_tensor(found.value).double().mean(0)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
