"""Gradients of two tasks: by hand, a task and its copy, and two tasks that fight."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde.measure import gradient_conflict
from sonde_studies.parts.heads import linear_head
from sonde_studies.recipes.where_tasks_part import where_tasks_part


class Trunk(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def rows(second, n=384):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 5, generator=draw)
    first = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2]).gt(0).long() + x[:, 3].gt(0.8).long()
    other = {"copy": first, "fresh": (x[:, 4] * x[:, 3] - x[:, 0]).gt(0.2).long()}[second]
    items = [{"x": v, "first": int(a), "second": int(b)}
             for v, a, b in zip(x, first, other, strict=True)]  # fmt: skip
    return x, first, other, items


@pytest.mark.slow
@pytest.mark.truth("gradients of the heads' losses by autograd, batch by batch")
def test_agreement_is_that_of_gradients_taken_by_hand():
    net = Trunk().eval()
    x, first, second, items = rows("fresh")
    found = where_tasks_part(Model(net), items, progress=False)
    order = np.random.default_rng(0).permutation(384)
    kept, held = (torch.from_numpy(np.sort(o)) for o in (order[:192], order[192:]))
    with torch.no_grad():
        states = net(x).double().numpy()[kept]
    gradients, task = [], []
    for number, truth in enumerate((first, second)):
        head = linear_head().fit(states, truth[kept].numpy())
        scale, last = head[0], head[1]
        weight, bias = (torch.from_numpy(v).float() for v in (last.coef_, last.intercept_))
        for part in held.split(3)[number::2]:
            z = (net(x[part]) - torch.from_numpy(scale.mean_).float()) / torch.from_numpy(
                scale.scale_
            ).float()
            logits = z @ weight.T + bias
            if logits.shape[1] == 1:
                logits = torch.cat([-logits / 2, logits / 2], 1)
            loss = nn.functional.cross_entropy(logits, truth[part])
            own = torch.autograd.grad(loss, list(net.layers[1].parameters()))
            gradients.append(torch.cat([g.flatten() for g in own]))
            task.append(number)
    want = gradient_conflict(torch.stack(gradients), torch.tensor(task))
    assert found.rows[1]["agreement"] == pytest.approx(float(want.value), abs=1e-4)
    assert np.isfinite([row["standard error"] for row in found.rows]).all()


@pytest.mark.slow
@pytest.mark.truth("a task and itself, over eight nets")
def test_a_task_agrees_with_its_copy_as_it_should():
    over = list[float]()
    *_, items = rows("copy", 1280)
    for seed in range(8):
        found = where_tasks_part(Model(Trunk(seed).eval()), items, progress=False)
        over += [row["agreement"] - row["of one task"] for row in found.rows]
    error = np.std(over) / 8**0.5  # the blocks of a net are not independent
    assert abs(np.mean(over)) < 3 * error
    assert error < 0.2


def test_columns_that_are_missing_are_named():
    *_, items = rows("copy")
    with pytest.raises(InputError, match="rows without topic"):
        where_tasks_part(Model(Trunk()), items, tasks=("first", "topic"), progress=False)
