"""Print how often ``sonde train`` calls training runs different.

Null pairs differ in the order of rows alone; planted pairs in the number of training rows. The
verdict over seeds stands beside two rules that ignore the noise of training: the interval over rows
of one pair, and the mean of such intervals' ends over seeds.

``--exchanged N`` asks only the law over seeds, much more often: in N worlds ten trainings differ in
the order of rows alone, so that every way to pair them is equally likely. The rate of false
verdicts over pairings, averaged over worlds, has a far smaller error than that of N pairs.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import torch
from tools.figures._table import Table, head
from torch import Tensor, nn

from sonde import Model
from sonde.data import open_inputs
from sonde.data.inputs import ItemInputs
from sonde.report.train import document
from sonde.run.training.arms import Recipe, train_arm
from sonde.run.training.document import train_document
from sonde.run.training.figures import student, task_figures

DIM, CLASSES, TRAINED, HELD = 6, 3, 60, 200
NAMES = {"model": "tiny", "data": "rows", "terms_typed": "", "sites_typed": [], "inserted": [],
         "scope_without": None, "output": "NEW"}  # fmt: skip


def rows_of(random: torch.Generator, n: int) -> list[dict[str, Any]]:
    """Return rows of classes that overlap; the classes lie alike in every draw."""
    means = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(5))
    label = torch.randint(CLASSES, (n,), generator=random)
    x = means[label] + 1.2 * torch.randn(n, DIM, generator=random)
    return [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]


def world_of(seed: int) -> tuple[Model, ItemInputs, ItemInputs]:
    """Return a net before training, rows to train on, and held-out rows."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Model(nn.Sequential(nn.Linear(DIM, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval())
    ours = open_inputs(model, rows_of(random, TRAINED), batch_size=10)
    return model, ours, open_inputs(model, rows_of(random, HELD))


def trained_pairs(seed: int, n_seeds: int, *, fewer: int) -> dict[str, Any]:
    """Return the document of trainings in other orders, the second on fewer rows."""
    model, ours, held = world_of(seed)
    arms, recipe = [], Recipe(epochs=2, rate=0.02)
    for n in range(2 * n_seeds):
        part = ours.first(TRAINED - fewer) if n % 2 else ours
        drawn = replace(recipe, seed=1000 * seed + n)
        arms.append(train_arm(model, part, {}, drawn, progress=False))
    pairs = list(zip(arms[::2], arms[1::2], strict=True))
    return train_document(model, held, pairs, recipe, names=NAMES, n_trained=TRAINED)


def is_off(gain: dict[str, float]) -> bool:
    """Return whether an interval leaves out 0."""
    return gain["low"] > 0 or gain["high"] < 0


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Return which rules call the two trainings different."""
    said = document(found).verdict
    each = {name: [seed["gain"][name] for seed in found["seeds"]] for name in found["gain"]}
    ends = {n: {e: fmean(g[e] for g in gs) for e in ("low", "high")} for n, gs in each.items()}
    return {
        "verdict": "The task gained" in said or "The task lost" in said,
        "loss over seeds": len(found["seeds"]) > 1 and is_off(found["gain"]["loss"]),
        "rows of one pair": is_off(each["accuracy"][0]),
        "loss, rows of one pair": is_off(each["loss"][0]),
        "mean ends": is_off(ends["accuracy"]),
        "loss, mean ends": is_off(ends["loss"]),
    }


EACH, PAIRINGS = 10, 400


def false_verdicts(seed: int, n_seeds: int, values: dict[str, Tensor]) -> dict[str, float]:
    """Return how often Student's interval over seeds leaves out 0, over ways to pair trainings."""
    random = torch.Generator().manual_seed(seed)
    off = dict.fromkeys(values, 0)
    for _ in range(PAIRINGS):
        order = torch.randperm(EACH, generator=random)[: 2 * n_seeds]
        for name, value in values.items():
            gaps = (value[order[::2]] - value[order[1::2]]).tolist()
            off[name] += is_off(student(gaps, 1 / HELD if name == "accuracy" else 0.0))
    return {name: n / PAIRINGS for name, n in off.items()}


def trained_alike(seed: int) -> dict[str, Tensor]:
    """Return accuracies and losses of trainings of one world that differ in the order of rows."""
    model, ours, held = world_of(seed)
    recipe = Recipe(epochs=2, rate=0.02)
    found = []
    for n in range(EACH):
        drawn = replace(recipe, seed=1000 * seed + n)
        arm = train_arm(model, ours, {}, drawn, progress=False)
        figures = task_figures(model, arm.module, held)
        found.append([float(x.sum() / figures.n.sum()) for x in (figures.right, figures.loss)])
    right, loss = torch.tensor(found, dtype=torch.float64).T
    return {"accuracy": right, "loss": loss}


def exchanged_lines(n_worlds: int, seeds: Sequence[int]) -> Table:
    """Yield the rates of false verdicts over pairings, and their errors over worlds."""
    worlds = [trained_alike(seed) for seed in range(n_worlds)]
    yield head(f"law over seeds, {n_worlds} worlds", "accuracy", "loss")
    for n_seeds in seeds:
        rates = [false_verdicts(seed, n_seeds, found) for seed, found in enumerate(worlds)]
        cells = [
            f"{fmean(r[name] for r in rates):.4f} +- "
            f"{stdev(r[name] for r in rates) / n_worlds**0.5:.4f}"
            for name in ("accuracy", "loss")
        ]
        yield f"| {n_seeds} seeds | {' | '.join(cells)} |"


def table(exchanged: int = 0, draws: int = 200, seeds: tuple[int, ...] = (3, 5)) -> Table:
    """Print the table.

    Parameters
    ----------
    exchanged
        Worlds in which only the law over seeds is asked; 0 asks all rules of pairs.
    draws
        Null pairs; a quarter as many are planted.
    seeds
        Numbers of seeds of a verdict.
    """
    if exchanged:
        yield from exchanged_lines(exchanged, seeds)
        return
    for fewer in (0, 40):
        what = f"{fewer} of {TRAINED} rows fewer" if fewer else "null pairs"
        n = draws // 4 if fewer else draws
        for n_seeds in seeds:
            found = [trained_pairs(seed, n_seeds, fewer=fewer) for seed in range(n)]
            told = [verdicts(one) for one in found]
            gains = [one["gain"]["accuracy"] for one in found]
            gap, size = (100 * fmean(g[name] for g in gains) for name in ("value", "detects"))
            yield f"{what}, {n} draws, {n_seeds} seeds: gap {gap:+.1f} points, detects {size:.1f}"
            for name in told[0]:
                yield f"| {name} | {fmean(t[name] for t in told):.3f} |"
