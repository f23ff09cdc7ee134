"""Test whether units found by path interventions are necessary, more than others.

A toy: a small MLP on digits. Graphs are found on one half of a class's rows and judged on the
other.
"""

from contextlib import ExitStack
from typing import final

import torch
from torch import Tensor, nn

import sonde
from sonde.edit import ClampUnit
from sonde.explain import CausalEdges, CausalGraph, GradTimesInput, Objective
from sonde_studies._digits import pixels, train
from sonde_studies.arms import note, note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick

LAYERS = ["0", "2", "4"]
FEW = 4
UNITS, READERS = {"0": 64, "2": 32}, {"0": "2:in", "2": "4:in"}
STEPS, RATE = 300, 3e-3
FIND = CausalGraph(quantile=0.9, baseline="zero")


@final
class CausalGraphStudy(Study):
    """Ten classes of digits, 64 and 32 hidden units, and random units as the control arm."""

    name = "causal-graph"
    title = "do path interventions find the units that a class needs, better than gradients do?"
    paper = "pathinterventions"
    fidelity = "the abstract gives no formulas: the definition is ours; nothing was chosen on test"
    data = "digits: 1,200 for training, the others for the graphs"
    claims = (
        Claim(
            "needed",
            "In fresh rows a class is lost more often without its graph's units, found in other "
            "rows of it by hundreds of passes, than without as many others.",
            "accuracy without random units less that without the graph's, mean over classes",
            above=0.1,
            arms=("graph", "random units"),
        ),
        Claim(
            "over gradients",
            f"A class is lost more often without its graph's {FEW} strongest units of the first "
            "layer than without those of the largest gradient times activation.",
            "accuracy without units by gradient less that without the graph's, mean over classes; "
            "the graph takes hundreds of passes, the gradient one",
            arms=("graph", "gradient"),
        ),
        Claim(
            "steady",
            f"Two halves of a class's rows name more of the same {FEW} units by the graph than by "
            "gradient times activation.",
            "share of units that both halves name, graph less gradient, mean over classes; "
            "the graph takes hundreds of passes, the gradient one",
            arms=("graph", "gradient"),
        ),
    )
    null = Claim(
        "silent",
        "Without units that are silent on its rows no class is lost.",
        "accuracy with all units less that without the silent ones, mean over classes",
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
    with part("graph"):
        found, again = (FIND.explain(net, rows, site=LAYERS, target=c) for rows in parts)
        children = [unit for unit in found.units if unit[0] == LAYERS[1]]
        note(rows=half, passes=UNITS[LAYERS[1]] + len(children) * UNITS[LAYERS[0]])
    graph = {layer: [j for name, j in found.units if name == layer] for layer in UNITS}
    note_for("random units", rows=0, passes=0)
    draw = torch.Generator().manual_seed(seed)
    order = {layer: torch.randperm(n, generator=draw).tolist() for layer, n in UNITS.items()}
    others = {layer: own[: len(graph[layer])] for layer, own in order.items()}
    rest = {layer: sorted(set(range(n)) - {*graph[layer]}) for layer, n in UNITS.items()}
    lost = _kept(net, parts[1], c, graph)
    random = _kept(net, parts[1], c, others)
    with part("gradient"):
        note(rows=half, passes=1)
        slopes = [_slopes(net, rows, c) for rows in parts]
    ranked = {
        "graph": [_strongest(_effects(one)) for one in (found, again)],
        "gradient": [_strongest(one) for one in slopes],
    }
    without = {
        name: _kept(net, parts[1], c, {LAYERS[0]: first}) for name, (first, _) in ranked.items()
    }
    common = {name: len({*a} & {*b}) / FEW for name, (a, b) in ranked.items()}
    without["random"] = _kept(net, parts[1], c, {LAYERS[0]: order[LAYERS[0]][:FEW]})
    return {
        "needed": random - lost,
        "over gradients": without["gradient"] - without["graph"],
        "steady": common["graph"] - common["gradient"],
        "silent": lost_by_silent(net, parts[1], c),
        "accuracy | without the graph": lost,
        "accuracy | without random units": random,
        "accuracy | graph alone": _kept(net, parts[1], c, rest),
        **{f"accuracy, {FEW} units | without {name}": value for name, value in without.items()},
        **{f"units of both halves | {name}": value for name, value in common.items()},
    }


def lost_by_silent(net: nn.Sequential, rows: Tensor, c: int, shift: int = 0) -> float:
    """Return the accuracy that a class loses with the units that are 0 on all of its rows.

    ``shift`` plants a fault: units are counted from another one.
    """
    off, h = dict[str, list[int]](), rows
    with torch.no_grad():
        for number, layer in enumerate(net):
            h = layer(h)
            if str(number - 1) in UNITS:  # behind the rectifier
                silent = (h == 0).all(0).nonzero().flatten()
                off[str(number - 1)] = ((silent + shift) % h.shape[1]).tolist()
    return _kept(net, rows, c, {}) - _kept(net, rows, c, off)


def _kept(net: nn.Sequential, rows: Tensor, c: int, off: dict[str, list[int]]) -> float:
    """Return the share of rows that keep their class while units of each layer are silent."""
    with ExitStack() as edits:
        for layer, units in off.items():
            if units:
                edits.enter_context(
                    sonde.editing(net, ClampUnit(tuple(units), 0.0), READERS[layer])
                )
        return float((net(rows).argmax(1) == c).double().mean())


def _strongest(value: Tensor) -> list[int]:
    return value.argsort(descending=True)[:FEW].tolist()


def _effects(found: CausalEdges) -> Tensor:
    """Return the summed effects of each unit of the first layer on its children in a graph."""
    total = torch.zeros(UNITS[LAYERS[0]], dtype=torch.float64)
    for ((layer, j), _), value in zip(found.edges, found.value, strict=True):
        if layer == LAYERS[0]:
            total[j] += value
    return total


def _slopes(net: nn.Sequential, rows: Tensor, c: int) -> Tensor:
    """Return the mean gradient times activation of each unit of the first layer."""
    found = GradTimesInput().explain(net, rows, objective=Objective(target=c), site="1")
    return torch.as_tensor(found.value).double().mean(0)
