"""Gains of a fine-tuning with losses or layers at sites, as JSON ``sonde-train/1``."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any, Final

from sonde.core.finite import finite_json
from sonde.core.inputs import Model
from sonde.data.inputs import ItemInputs
from sonde.run.compressing.inside import inside
from sonde.run.training.arms import Arm, Recipe
from sonde.run.training.figures import (
    TaskFigures,
    compared,
    mcnemar,
    student,
    task_figures,
    term_values,
    thinned,
)
from sonde.run.training.layers import layer_figures

SCHEMA: Final = "sonde-train/1"
FIGURES = {"right": "accuracy", "loss": "loss"}


def train_document(
    model: Model,
    held: ItemInputs,
    pairs: Sequence[tuple[Arm, Arm | None]],
    recipe: Recipe,
    *,
    names: Mapping[str, Any],
    n_trained: int,
) -> dict[str, Any]:
    """Return the JSON of one fine-tuning.

    Parameters
    ----------
    model : Model
        As it was before.
    held : ItemInputs
        Examples that were not trained on.
    pairs : sequence of (Arm, Arm or None)
        For each seed the arm with the losses or layers, and the arm without.
    recipe : Recipe
    names : mapping
        What the user typed: ``model``, ``data``, ``terms``, ``sites``, ``inserted``, ``output``.
    n_trained : int
        Examples that were trained on.
    """
    before = task_figures(model, model.module, held)
    seeds = [_seed(model, held, before, pair) for pair in pairs]
    first, plain = pairs[0]
    sites = {
        name: [site.json() for site in inside(model, arm.module, held)]
        for name, arm in (("with", first), ("without", plain))
        if arm is not None
    }
    document = {
        "schema": SCHEMA,
        **names,
        "recipe": asdict(recipe),
        "trained_on": n_trained,
        "held": len(held),
        "answers": int(before.n.sum()),
        "before": {field: compared(before, None, name) for name, field in FIGURES.items()},
        "seeds": seeds,
        "gain": {
            "accuracy": _gain(seeds, "accuracy", grain=1 / max(float(before.n.sum()), 1)),
            "loss": _gain(seeds, "loss"),
        },
        "terms": _terms(model, held, pairs, seeds),
        "layers": [asdict(one) for one in layer_figures(model, first.module, held)],
        "sites": sites,
        "curves": {
            name: thinned(arm.curve)
            for name, arm in (("with", first), ("without", plain))
            if arm is not None
        },
        "left_out": [
            {"term": name, "steps": n, "of": len(first.curve)} for name, n in first.left_out.items()
        ],
        "conflict": [row["conflict"] for row in first.curve if "conflict" in row],
        "undo": f"sonde edit undo {names['output']} -o {names['output']}-undone",
    }
    return finite_json(document)


def _seed(
    model: Model,
    held: ItemInputs,
    before: TaskFigures,
    pair: tuple[Arm, Arm | None],
) -> dict[str, Any]:
    """Return the metrics of a seed's arms, and the gain over the other arm or no training."""
    arms = dict(zip(("with", "without"), pair, strict=True))
    tasks = {
        name: task_figures(model, arm.module, held) for name, arm in arms.items() if arm is not None
    }
    other = tasks.get("without", before)
    gain = {title: compared(tasks["with"], other, field) for field, title in FIGURES.items()}
    gain["accuracy"] |= mcnemar(tasks["with"], other)
    return {
        **{
            name: {title: compared(task, None, field) for field, title in FIGURES.items()}
            for name, task in tasks.items()
        },
        "gain": gain,
        "terms": {
            name: term_values(model, arm.module, held, pair[0].losses, arm.teacher)
            for name, arm in arms.items()
            if arm is not None
        },
    }


def _gain(seeds: Sequence[Mapping[str, Any]], name: str, grain: float = 0.0) -> dict[str, float]:
    """Return the mean gain over pairs of training runs, with its interval over seeds.

    The interval of a single pair is over rows: it does not know how trainings differ.
    """
    each = [seed["gain"][name] for seed in seeds]
    return dict(each[0]) if len(each) == 1 else student([one["value"] for one in each], grain)


def _terms(
    model: Model,
    held: ItemInputs,
    pairs: Sequence[tuple[Arm, Arm | None]],
    seeds: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the value of each loss before training, and after it in each arm."""
    first, plain = pairs[0]
    teacher = first.teacher
    if first.average is not None:  # it began as the model
        teacher = replace(model, module=copy.deepcopy(model.module))
    before = term_values(model, model.module, held, first.losses, teacher)
    return [
        {
            "term": name,
            "before": value,
            "with": fmean(seed["terms"]["with"][name] for seed in seeds),
            "without": None
            if plain is None
            else fmean(seed["terms"]["without"][name] for seed in seeds),
            "difference": None
            if plain is None or len(seeds) == 1
            else student(
                [seed["terms"]["with"][name] - seed["terms"]["without"][name] for seed in seeds]
            ),
        }
        for name, value in before.items()
    ]
