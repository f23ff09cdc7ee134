"""A world: a task, a net trained on it to a stated score, and rows that it has not met."""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tools.faultgen.nets import FAMILIES
from tools.faultgen.parts import last_linear
from tools.faultgen.sources import FAULTGEN
from tools.faultgen.tasks import PAD_LABEL, Rows, Task, draw_task
from torch import Tensor, nn

MODELS = FAULTGEN / "models"
VERSION = 3
"""Part of the name of a stored net: raise it whenever nets or tasks are drawn otherwise."""
STEPS, BATCH, RATE = 260, 64, 4e-3
EARLY = 26
ENOUGH = 0.45
"""Fraction of the way from the commonest answer, or the mean, to no error that a net must go."""


@dataclass(frozen=True)
class World:
    """A net and the rows that a scan is given, with what the judge keeps for itself.

    Parameters
    ----------
    task : Task
    family : str
    net : nn.Module
    train, given, fresh : Rows
        What the net learned from, what the scan sees, and what a fix is judged on.
    early : mapping of str to Tensor
        Weights of the net early in its training.
    """

    task: Task
    family: str
    net: nn.Module
    train: Rows
    given: Rows
    fresh: Rows
    early: Mapping[str, Tensor]


def answers(net: nn.Module, rows: Rows, n: int = 256) -> Tensor:
    """Return what plain torch answers, as one tensor."""
    found = []
    with torch.no_grad():
        for i in range(0, len(rows), n):
            part = {name: t[i : i + n] for name, t in rows.tensors.items()}
            out: Any = net(**part)
            found.append(out if isinstance(out, Tensor) else out.logits)
    return torch.cat(found)


def by_row(kind: str, given: Tensor, target: Tensor) -> Tensor:
    """Return the score of each row: correct answers, or 1 less its part of the error's variance.

    Parameters
    ----------
    kind : str
        Kind of the task.
    given, target : Tensor
        Answers and what they should be.
    """
    if kind in ("number", "numbers"):
        spread = target.double().var(0, correction=0).clamp(min=1e-12)
        error = (given.double() - target.double()).square() / spread
        return 1 - error.nan_to_num(1e6, 1e6, 1e6).clamp(max=1e6).mean(1)
    if kind in ("tokens", "map"):
        best = given.argmax(-1 if kind == "tokens" else 1)
        known = target != PAD_LABEL
        right = ((best == target) & known).flatten(1).sum(1).double()
        return right / known.flatten(1).sum(1).clamp(min=1)
    return (given.argmax(1) == target).double()


def score(world_kind: str, net: nn.Module, rows: Rows) -> float:
    """Return accuracy, or R^2."""
    return float(by_row(world_kind, answers(net, rows), rows.target).mean())


def chance(kind: str, target: Tensor) -> float:
    """Return the score of the commonest answer, or of the mean."""
    if kind in ("number", "numbers"):
        return 0.0
    counts = torch.bincount(target[target != PAD_LABEL].flatten())
    return float(counts.max() / counts.sum())


def _loss(kind: str, given: Tensor, target: Tensor) -> Tensor:
    if kind in ("number", "numbers"):
        return nn.functional.mse_loss(given, target)
    if kind == "tokens":
        return nn.functional.cross_entropy(given.flatten(0, 1), target.flatten())
    return nn.functional.cross_entropy(given, target)


def _fit(net: nn.Module, kind: str, rows: Rows) -> dict[str, Tensor]:
    """Train, on targets of mean 0 and variance 1, and return the weights of an early step."""
    mean, std = torch.zeros(()), torch.ones(())
    if kind in ("number", "numbers"):
        mean, std = rows.target.mean(0), rows.target.std(0).clamp(min=1e-9)
        rows = Rows(rows.tensors, (rows.target - mean) / std)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    draw, early = torch.Generator().manual_seed(5), {}
    net.train()
    for step in range(STEPS):
        part = rows.take(torch.randint(len(rows), (min(BATCH, len(rows)),), generator=draw))
        optimizer.zero_grad()
        out: Any = net(**part.tensors)
        _loss(kind, out if isinstance(out, Tensor) else out.logits, part.target).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == EARLY:
            early = copy.deepcopy(net.state_dict())
    net.eval().requires_grad_(False)
    if kind in ("number", "numbers"):  # the net answers in the unit of the targets
        head = last_linear(net)
        for state in (head.state_dict(), {k.rpartition(".")[2]: v for k, v in early.items()
                                          if "fc_out" in k}):  # fmt: skip
            state["weight"].mul_(std[:, None])
            state["bias"].mul_(std).add_(mean)
    return early


def _trained(net: nn.Module, task: Task, train: Rows, name: str) -> dict[str, Tensor]:
    """Train a net, or load the weights that an earlier draw of the same seed has stored."""
    path = MODELS / f"{name}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        net.load_state_dict(kept["state"])
        net.eval().requires_grad_(False)
        return kept["early"]
    early = _fit(net, task.kind, train)
    MODELS.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{random.SystemRandom().randrange(10**9)}")
    torch.save({"state": net.state_dict(), "early": early}, part)
    part.rename(path)
    return early


def draw_world(draw: random.Random, seed: int, number: int) -> World | None:
    """Draw a task and train a net on it; None if the net learns too little.

    Parameters
    ----------
    draw : random.Random
    seed, number : int
        Name the stored weights.
    """
    task = draw_task(draw)
    family = draw.choice(list(FAMILIES[task.shape]))
    torch.manual_seed(draw.randrange(2**31))
    net = FAMILIES[task.shape][family](task, draw)
    train, given, fresh = task.parts(draw)
    early = _trained(net, task, train, f"{VERSION}-{seed}-{number}")
    least = chance(task.kind, fresh.target)
    if not score(task.kind, net, fresh) - least >= ENOUGH * (1 - least):
        return None
    return World(task, family, net, train, given, fresh, early)
