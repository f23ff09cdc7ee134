"""Metrics of a fine-tuned model on held-out examples: the task, and the losses at sites."""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.special import stdtrit
from scipy.stats import binomtest
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.data.inputs import ItemInputs
from sonde.metrics.intervals import Bootstrap, measured
from sonde.run.training.arms import Losses
from sonde.tap import live_stream
from sonde.tap.training.places import TEACHER
from sonde.tap.training.terms import training
from sonde.weights.tuning import row_losses


@dataclass(frozen=True, eq=False)
class TaskFigures:
    """Losses and correct answers on held-out examples, summed by group.

    Parameters
    ----------
    loss, right, n : Tensor (group,)
        Nats, right answers and answers.
    """

    loss: Tensor
    right: Tensor
    n: Tensor


def task_figures(model: Model, module: nn.Module, held: ItemInputs) -> TaskFigures:
    """Evaluate a module on a model's task, on held-out examples."""
    losses = row_losses(replace(model, module=module), module, held)
    groups: dict[bytes, int] = {}
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for batch in held.batches(0, len(held)):
            answers = losses.answers(batch)
            is_known = answers.truth >= 0
            index = [groups.setdefault(key, len(groups)) for key in batch.group_keys]
            group = torch.tensor(index)[answers.example][is_known]
            right = (answers.log_p.argmax(1) == answers.truth)[is_known]
            parts.append((group, -answers.log_p_of_truth[is_known].double(), right.double()))
    group, nats, right = (torch.cat(part) for part in zip(*parts, strict=True))
    zeros = torch.zeros(3, len(groups), dtype=torch.float64)
    for into, x in zip(zeros, (nats, right, torch.ones_like(nats)), strict=True):
        into.index_add_(0, group, x)
    return TaskFigures(*zeros)


def compared(one: TaskFigures, other: TaskFigures | None, name: str) -> dict[str, Any]:
    """Return the mean loss or accuracy over answers, or its difference, with an interval.

    The bootstrap resamples groups of examples, in the same way for both sides of a difference.
    """

    def mean(weights: Tensor) -> Tensor:
        means = (weights @ getattr(one, name)) / (weights @ one.n)
        if other is None:
            return means
        return means - (weights @ getattr(other, name)) / (weights @ other.n)

    figure = measured(mean, torch.arange(len(one.n)), Bootstrap())
    return {"value": float(figure), "low": figure.low, "high": figure.high}


def mcnemar(one: TaskFigures, other: TaskFigures) -> dict[str, float]:
    """Return on how many groups one model is better and worse, and McNemar's exact p-value.

    It is about these two models on these rows, not about other trainings.
    """
    change = (one.right - other.right).sign()
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p": float(p)}


def student(values: Sequence[float], grain: float = 0.0) -> dict[str, float]:
    """Return the mean of two or more independent values, with Student's 95 % interval.

    ``detects`` is the true mean at which four of five such intervals leave out 0. Values that are
    multiples of ``grain`` spread at least as much as their rounding: equal ones are no certainty.
    """
    n = len(values)
    error = max(stdev(values), grain / math.sqrt(12)) / math.sqrt(n)
    half = error * float(stdtrit(n - 1, 0.975))
    mean = fmean(values)
    return {
        "value": mean,
        "low": mean - half,
        "high": mean + half,
        "detects": half + error * float(stdtrit(n - 1, 0.8)),
    }


def term_values(
    model: Model,
    module: nn.Module,
    held: ItemInputs,
    losses: Losses,
    teacher: Model | None = None,
) -> dict[str, float]:
    """Return the value of each loss on the rows of all held-out examples together.

    Rows are read as `sonde fit` reads them. Attention maps, and states with their positions, are
    evaluated batch by batch, as by ``Terms.evaluate``. Parameters of a loss are not trained here.
    """
    label = torch.cat([batch.label for batch in held.batches(0, len(held))])
    values = {}
    for key, loss in losses.items():
        sites = (key,) if isinstance(key, str) else key
        name = f"{type(loss).__name__}({', '.join(sites)})"
        if any(site.endswith(":probs") for site in sites) or _takes_whole_states(loss):
            values[name] = _by_batch(replace(model, module=module), held, {key: loss}, teacher)
            continue
        rows = [_states_of_held(model, module, held, site, teacher) for site in sites]
        takes_label = "label" in inspect.signature(loss.forward).parameters
        with torch.no_grad():
            value = copy.deepcopy(loss).eval()(*rows, **({"label": label} if takes_label else {}))
        values[name] = float(value)
    return values


def _takes_whole_states(loss: nn.Module) -> bool:
    return getattr(loss, "reducer", "mean") is None


def _by_batch(model: Model, held: ItemInputs, loss: Losses, teacher: Model | None) -> float:
    batches = held.batches(0, len(held))
    with training(model, loss, teacher=teacher) as terms:
        (value,) = terms.evaluate(
            ((*b.args, b.kwargs), {"label": b.label}) for b in batches
        ).values()
    return value


def _states_of_held(
    model: Model, module: nn.Module, held: ItemInputs, site: str, teacher: Model | None
) -> Tensor:
    live = replace(model, module=module)
    if site.startswith(TEACHER):
        assert teacher is not None  # checked when the losses were attached
        live, site = teacher, site.removeprefix(TEACHER)
    stream = live_stream(live, held, [site], "mean", logits=False)
    (kind,) = stream.schema
    return torch.cat([b.rows[kind.key].float().cpu() for b in stream.batches(0, len(stream))])


def thinned(curve: Sequence[Mapping[str, float]], most: int = 200) -> list[dict[str, float]]:
    """Return at most ``most`` points of a curve, each the mean of consecutive steps."""
    size = -(-len(curve) // most) if curve else 1
    groups = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [
        {
            name: sum(row[name] for row in group if name in row) / sum(name in row for row in group)
            for name in dict.fromkeys(name for row in group for name in row)
        }
        for group in groups
    ]
