"""Two tasks on one trunk: where their gradients disagree, and so where they should part."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde import InputError, Model, gather, read, training
from sonde.core import ChartAxis, curves
from sonde.data import open_inputs
from sonde.measure import gradient_conflict
from sonde.report import Answer
from sonde.tap import place_of
from sonde_studies.parts.figures import melted
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.rows import rows_with

QUESTION = "Where should two tasks part?"
WORDED = {"agreement": "two tasks", "of one task": "a task and itself"}
LEAST, MOST, BATCHES = 128, 50_000, 64


def where_tasks_part(
    model: Model,
    data: Any,
    *,
    tasks: Sequence[str] = ("first", "second"),
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Compare the gradients of two tasks at each block of a trunk that serves both.

    A linear head on the states of the last block learns each task on half of the rows. On the other
    half its loss is differentiated for the weights of each block: the first task's on even batches,
    the second's on odd batches. Where the mean gradients agree less than those of a single task
    would, sharing costs most.

    Example: sonde recipe where-tasks-part MODEL DATA --tasks language topic -o fork.html

    Parameters
    ----------
    model : Model
        The trunk, trained or not.
    data : str, path or iterable
        Rows with an input and the label of each task.
    tasks : sequence of str, default=("first", "second")
        Columns of the two labels.
    site : str, default="auto"
        Where the heads read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the halves, and the weights of a large block that are looked at.
    """
    rows = rows_with("where_tasks_part", data, [*tasks], LEAST, limit)
    if len(tasks) != 2:
        raise InputError(f"where_tasks_part: expected two tasks, got {len(tasks)}. Name: tasks.")
    items = [{k: v for k, v in row.items() if k not in tasks} for row in rows]
    blocks = [s for s in read(model, items, check=False).schema]
    found = gather(read(model, items, sites=site, logits=False), progress)
    key = [*found.rows][-1]
    kinds = [np.unique([str(r[t]) for r in rows], return_inverse=True) for t in tasks]
    if len(found) != len(rows) or min(len(names) for names, _ in kinds) < 2:
        raise InputError(
            "where_tasks_part: expected rows that the model reads whole and two or more classes "
            f"of each task, got {len(found)} of {len(rows)} rows and "
            f"{', '.join(str(len(names)) for names, _ in kinds)} classes."
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    kept, held = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
    heads = [_head(found.rows[key][kept], truth[kept]) for _, truth in kinds]
    truths, items = [torch.from_numpy(truth[held]) for _, truth in kinds], [items[i] for i in held]
    weights = {str(s.site): _weights(model, s.site.path) for s in blocks}
    weights = {name: own for name, own in weights.items() if own}
    parts, task = _gradients(model, items, key, heads, truths, weights, seed)
    table = list[dict[str, Any]]()
    for name, part in parts.items():
        both = gradient_conflict(part, task)
        table.append({
            "block": name, "agreement": float(both.value), "of one task": _of_one_task(both.itself),
            "standard error": both.se,
        })  # fmt: skip
    gap = [row["of one task"] - row["agreement"] for row in table]
    least = int(np.argmax(gap))
    at = table[least]
    parted = gap[least] > 2 * float(at["standard error"] or 1.0)
    verdict = f"part at {at['block']}" if parted else "share all"
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear",
        sentence=f"The tasks {tasks[0]} and {tasks[1]} agree least at {at['block']}: the cosine of "
        f"their mean gradients is {at['agreement']:.2f}, where a single task would have "
        f"{at['of one task']:.2f}. It is {table[0]['agreement']:.2f} at the first block and "
        f"{table[-1]['agreement']:.2f} at the last.",
        value=at["agreement"],
        null=at["of one task"],
        n=len(rows),
        range=(-1.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=curves(
            "Agreement of gradients by block",
            melted(table, "block", "cosine", "between", WORDED),
            ChartAxis("block", title=""),
            "cosine",
            by="between",
        ),
        facts={"heads read": key, "batches": str(len(task))},
        advice=(
            "This is the model as it is, before the tasks are trained on it. Blocks below the "
            "named one may be shared; train both forks to be sure.",
        ),
    )


class _Head(nn.Module):
    """The loss of a linear head on standardised states."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x.float() @ self.weight + self.bias, label)


def _head(x: Tensor, truth: Any) -> _Head:
    scale, head = (step for _, step in linear_head().fit(x.double().numpy(), truth).steps)
    weight = torch.from_numpy(head.coef_ / scale.scale_).float()
    bias = (
        torch.from_numpy(head.intercept_).float() - weight @ torch.from_numpy(scale.mean_).float()
    )
    if len(weight) == 1:  # two classes have one row of weights
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return _Head(weight.T.contiguous(), bias)


def _weights(model: Model, path: str) -> list[nn.Parameter]:
    module = model.module.get_submodule(path)
    return [p for p in module.parameters() if p.is_floating_point()]


def _gradients(
    model: Model,
    items: Any,
    site: str,
    heads: list[_Head],
    truths: list[Tensor],
    weights: dict[str, list[nn.Parameter]],
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradients of each block, a row for each task and batch, and the task of each."""
    inputs = open_inputs(model, items, batch_size=max(2, len(items) // BATCHES))
    place = place_of(model.module, next(iter(inputs.batches(0, 1))))
    parts: dict[str, list[Tensor]] = {name: [] for name in weights}
    task = list[int]()
    for number, (head, truth) in enumerate(zip(heads, truths, strict=True)):
        with training(model, {site.split("|")[0]: head}) as terms, torch.enable_grad():
            for batch in islice(inputs.batches(0, len(inputs)), number, None, 2):
                args, kwargs = place.call(batch.args, batch.kwargs)
                model.module(*args, **kwargs)
                loss = terms.loss(label=truth[batch.order])
                for name, own in weights.items():
                    slopes = torch.autograd.grad(loss, own, allow_unused=True, retain_graph=True)
                    flat = [torch.zeros_like(p) if g is None else g
                            for p, g in zip(own, slopes, strict=True)]  # fmt: skip
                    parts[name].append(_some(torch.cat([g.flatten() for g in flat]), seed))
                task.append(number)
    return {name: torch.stack(rows) for name, rows in parts.items()}, torch.tensor(task)


def _of_one_task(halves: Tensor) -> float:
    """Return the cosine that a task would have with itself on other batches.

    Noise shortens the cosine of two means of ``n`` gradients by ``t / (t + v)``; ``halves`` is the
    same for halves, ``t / (t + 2 v)``.
    """
    return float((2 * halves / (1 + halves)).clamp(min=0).prod().sqrt())


def _some(x: Tensor, seed: int) -> Tensor:
    """Return a vector, or entries of it drawn by a seed if it is long."""
    if len(x) <= MOST:
        return x.cpu()
    return x.cpu()[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST]]
