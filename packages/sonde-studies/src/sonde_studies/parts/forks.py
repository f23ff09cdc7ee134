"""Gradients of tasks with a shared trunk, at each of its blocks."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sonde import Model, Site, training
from sonde.data import open_inputs
from sonde.tap import place_of
from sonde_studies.parts.heads import linear_head

MOST, BATCHES, SHUFFLES = 50_000, 64, 400


class TaskHead(nn.Module):
    """The loss of a linear head on standardised states."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(x.float() @ self.weight + self.bias, label)


def task_head(x: Tensor, truth: Any) -> TaskHead:
    """Return a linear head trained on states for a task."""
    scale, head = (step for _, step in linear_head().fit(x.double().numpy(), truth).steps)
    weight = torch.from_numpy(head.coef_ / scale.scale_).float()
    bias = (
        torch.from_numpy(head.intercept_).float() - weight @ torch.from_numpy(scale.mean_).float()
    )
    if len(weight) == 1:  # two classes have one row of weights
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return TaskHead(weight.T.contiguous(), bias)


def task_gradients(
    model: Model,
    items: Any,
    site: str,
    heads: list[TaskHead],
    truths: list[Tensor],
    blocks: Sequence[Site],
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each block's gradients, one row per task and batch, and the task of each row.

    Parameters
    ----------
    model : Model
    items : list of dict
    site : str
        Key of the site that the heads read.
    heads : list of TaskHead
    truths : list of Int[Tensor, "item"]
        The label of each task.
    blocks : sequence of Site
        Whose weights are looked at; blocks without weights are left out.
    seed : int
        Draws the weights of a large block that are looked at.
    """
    modules = {str(block): model.module.get_submodule(block.path) for block in blocks}
    every = {n: [p for p in m.parameters() if p.is_floating_point()] for n, m in modules.items()}
    weights = {name: own for name, own in every.items() if own}
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


def least_alike(parts: dict[str, Tensor], task: Tensor, seed: int) -> tuple[str, float]:
    """Return the block where two tasks' gradients differ most, and the p-value.

    Batches are dealt to two tasks by lot: of a single task the product of the mean gradients of
    the tasks is as that of the lots. p counts the largest gap of all blocks, in standard
    deviations of the lots. A cosine would not do: of opposed tasks that of lots is near -1 too.

    Parameters
    ----------
    parts : dict of str to Float[Tensor, "batch weight"]
    task : Int[Tensor, "batch"]
    seed : int
        Draws the lots.
    """
    draw, own = torch.Generator().manual_seed(seed), task == 0
    lots = [own[torch.randperm(len(own), generator=draw)] for _ in range(SHUFFLES)]
    first = torch.stack([own, *lots]).double()
    one, two = (side / side.sum(1, keepdim=True) for side in (first, 1 - first))
    found = list[Tensor]()
    for gradients in parts.values():
        x = gradients.double()
        for side in (own, ~own):  # a task of larger losses counts no more than the other
            x[side] /= x[side].square().sum(1).mean().sqrt().clamp(min=1e-300)
        found.append(((one @ (x @ x.T)) * two).sum(1))
    table = torch.stack(found)
    null, spread = table[:, 1:].mean(1), table[:, 1:].std(1).clamp(min=1e-12)
    far = (null[:, None] - table) / spread[:, None]
    p = float((far.amax(0) >= far[:, 0].max()).double().mean())
    return [*parts][int(far[:, 0].argmax())], p


def _some(x: Tensor, seed: int) -> Tensor:
    """Return a vector, or a random sample of its entries if it is long."""
    if len(x) <= MOST:
        return x.cpu()
    return x.cpu()[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST]]
