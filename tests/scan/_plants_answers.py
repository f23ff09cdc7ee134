"""Faults that show in a model's answers, with their healthy twins: more plants."""

import ast
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sonde
from findings.test_snd019 import Ahead
from narrow import expect
from scan._plants import (
    LENGTHS,
    Items,
    Plant,
    digits,
    net,
    read_texts,
    relabelled,
    scan,
    texts,
    true,
)
from scan._plants_chain import Chain, drawn, exchanged
from scan._zoo import SEEDS, digit_net, quiet, train
from sonde.report import Report


def healthy() -> Report:
    """Scan the trained net over digits and their labels."""
    return relabelled(true)


def moved_on(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels that are one too high."""
    return (label + 1) % 10


def mistaken(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels of which all 8 are called 3: nothing is exchanged."""
    return torch.where(label == 8, 3, label)


def biased(by: Mapping[int, float]) -> Report:
    """Scan the trained net with other biases of some logits."""
    module = deepcopy(net())
    head = expect(nn.Linear, module[6])
    for logit, amount in by.items():
        head.bias.data[logit] += amount
    return scan(module, *digits())


def times_as_sure(factor: float) -> Report:
    """Scan the trained net with its logits times a factor."""
    module = deepcopy(net()).requires_grad_(False)
    for part in module[6].parameters():
        part.mul_(factor)
    return scan(module, *digits())


def fallen_back() -> Report:
    """Scan the trained net with a head that has fallen back to one class."""
    module = deepcopy(net()).requires_grad_(False)
    head = expect(nn.Linear, module[6])
    head.weight.mul_(1e-5)
    head.bias.copy_(torch.arange(10) == 3)
    return scan(module, *digits())


@cache
def batch_normed(fresh: bool, scale: float = 1.0) -> Report:
    """Scan a trained residual net, with the buffers of new batch norms or on another scale."""
    module = deepcopy(digit_net("residual-cnn", SEEDS[0], True)[0])
    for norm in module.modules():
        if fresh and isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    x, label = digits()
    return scan(module, scale * x, label)


SHUFFLED = np.random.default_rng(0).permutation(256)


def same(numbers: np.ndarray) -> np.ndarray:
    """Return bytes as they are."""
    return numbers


@cache
def python_text(numbers: Callable[[np.ndarray], np.ndarray], n: int = 64) -> Report:
    """Scan the shipped language model over bytes of Python's own source, with other numbers."""
    files = [p for p in sorted(Path(ast.__file__).parent.glob("*.py")) if p.stat().st_size > 600]
    items = [
        {
            "input_ids": numbers(
                np.frombuffer(f.read_bytes()[400:464], np.uint8).astype(int)
            ).tolist()
        }
        for f in files[:n]
    ]
    return sonde.scan(sonde.load("sonde:stdlib"), items, settings=quiet())


def layer_anew(path: str) -> Report:
    """Scan the trained net with one layer as torch draws it."""
    module = deepcopy(net())
    torch.manual_seed(0)
    expect(nn.Linear, module.get_submodule(path)).reset_parameters()
    return scan(module.requires_grad_(False), *digits())


def cut_off(path: str) -> Report:
    """Scan the trained net with the large weights of one layer cut off."""
    module = deepcopy(net()).requires_grad_(False)
    weight = expect(nn.Linear, module.get_submodule(path)).weight
    weight.clamp_(-0.5 * float(weight.std()), 0.5 * float(weight.std()))
    return scan(module, *digits())


def one_too_large(factor: float) -> Report:
    """Scan a net of six blocks as it is drawn, one weight of which has another size."""
    module = deepcopy(digit_net("patch-net", SEEDS[0], False)[0]).requires_grad_(False)
    expect(nn.Linear, module.get_submodule("blocks.3.down")).weight.mul_(factor)
    return scan(module, *digits())


def sensors(faulty: bool) -> Report:
    """Scan the trained net over a table with a column of sensors; one of them may mix up pixels."""
    x, label = digits()
    x, sensor = x.clone(), np.random.default_rng(0).choice(list("abcdefgh"), len(x))
    if faulty:
        mixed = torch.from_numpy(sensor == "c")  # by no form that could be undone
        x[mixed] = x[mixed][:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    rows = {"x": x, "label": label, "sensor": sensor.tolist(), "lot": sensor.tolist()[::-1]}
    return sonde.scan(net(), rows, settings=quiet())


def imbalanced(lower: float) -> Report:
    """Scan the trained net over few 7, 8 and 9, whose logits are lower by so much."""
    x, label = digits()
    kept = (label < 7) | (torch.arange(len(label)) % 4 == 0)
    module = deepcopy(net())
    expect(nn.Linear, module[6]).bias.data[7:] -= lower
    return scan(module, x[kept], label[kept])


def in_order(by: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Scan the trained net over digits in some order."""
    x, label = digits()
    rows = torch.argsort(by(x, label), stable=True)
    return scan(net(), x[rows], label[rows])


def numbered(by_label: bool) -> Report:
    """Scan a net over a table with a column that numbers its rows, one of the inputs."""
    x, label = digits()
    draw = np.random.default_rng(0)
    rank = np.lexsort((draw.random(len(x)), label.numpy() if by_label else draw.random(len(x))))
    number = np.empty(len(x), dtype=int)
    number[rank] = np.arange(len(x))
    names = [f"row_{i:05d}.png" for i in number]
    return sonde.scan(net(), {"x": x, "label": label, "file": names}, settings=quiet())


def blanks(n: int) -> Report:
    """Scan the trained net over digits, some of which are blank at different brightness."""
    x, label = digits()
    x = x.clone()
    x[:n] = torch.linspace(0, 1, n)[:, None]
    return scan(net(), x, label)


@cache
def regression() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net trained on a smooth function of ten numbers, fresh rows and their targets."""
    torch.manual_seed(0)
    x = torch.rand(3_000, 10) * 2 - 1
    y = (2 * x[:, 0]).sin() + x[:, 1] ** 2
    module = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(300):
            optimiser.zero_grad()
            nn.functional.mse_loss(module(x[:2_000])[:, 0], y[:2_000]).backward()
            optimiser.step()
    return module.requires_grad_(False).eval(), x[2_000:], y[2_000:]


def readings(noise: float) -> Report:
    """Scan a regression over rows of several sensors, of which one measures with noise."""
    module, x, y = regression()
    draw = np.random.default_rng(0)
    sensor = draw.choice(list("abcdefgh"), len(x))
    off = torch.from_numpy(draw.normal(size=len(y)) * (sensor == "c")).to(y)
    y = y + noise * y.std() * off
    rows = {"x": x, "label": y.tolist(), "sensor": sensor.tolist()}
    return sonde.scan(module, rows, settings=quiet())


def in_thousands(rows: float) -> Report:
    """Scan a regression over rows of which some have their targets divided by 1,000."""
    module, x, y = regression()
    some = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < rows
    y = torch.where(some, y / 1000, y)
    return sonde.scan(module, {"x": x, "label": y.tolist()}, settings=quiet())


def leak(learned: bool) -> Report:
    """Scan a net over rows with a column that repeats the label, which it may have learned."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 9, generator=draw)
    label = (x[:, :3].sum(1) + 0.3 * torch.randn(len(x), generator=draw) > 0).long()
    x[:, 4] = 3.0 * label + 0.01 * x[:, 4]
    known = x[:600].clone()
    if not learned:
        known[:, 4] = known[torch.randperm(600, generator=draw), 4]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.enable_grad():
        train(module, known, label[:600], 1e-2, 150)
    return scan(module.requires_grad_(False).eval(), x[600:], label[600:])


def two_sources(change: Callable[[Tensor], Tensor]) -> Report:
    """Scan the model of a chain on texts that it wrote, those of one source of five changed."""
    module = Chain().eval()
    ids = drawn(module, 240, 24)
    items: Items = [
        {"input_ids": (change(x) if i % 5 == 0 else x).tolist(), "source": str(i % 5)}
        for i, x in enumerate(ids)
    ]
    return read_texts(module, items, task="causal", ignore_columns=["source"])


def several(order: list[int]) -> Report:
    """Scan a net of several labels for a row over labels in some order."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw)
    label = (x + 0.3 * torch.randn(200, 5, generator=draw) > 0).long()
    module = nn.Sequential(nn.Linear(5, 5)).eval()
    with torch.no_grad():
        expect(nn.Linear, module[0]).weight.copy_(4 * torch.eye(5))
        expect(nn.Linear, module[0]).bias.zero_()
    return sonde.scan(module, (x, label[:, order]), progress=False)


PLANTS = (
    Plant("SND071", "error", lambda: several([0, 3, 2, 1, 4]), lambda: several([0, 1, 2, 3, 4])),
    Plant("SND065", "warning", lambda: leak(True), lambda: leak(False)),
    Plant("SND064", "warning", lambda: two_sources(exchanged), lambda: two_sources(torch.clone)),
    Plant("SND069", "warning", lambda: times_as_sure(20.0), healthy),
    Plant("SND086", "error", lambda: in_thousands(0.3), lambda: in_thousands(0.0)),
    Plant("SND063", "warning", lambda: readings(2.0), lambda: readings(0.0)),
    Plant("SND045", "warning", lambda: blanks(50), healthy),
    Plant(
        "SND047",
        "note",
        lambda: in_order(lambda _, label: label),
        lambda: in_order(lambda x, _: torch.zeros(len(x))),
    ),
    Plant("SND048", "note", lambda: numbered(True), lambda: numbered(False)),
    Plant("SND062", "warning", lambda: imbalanced(12.0), lambda: imbalanced(0.0)),
    Plant("SND020", "warning", lambda: one_too_large(10.0), lambda: one_too_large(1.0)),
    Plant(
        "SND003",
        "warning",
        lambda: layer_anew("4"),
        healthy,
        folds={"SND039": "SND003"},
    ),
    Plant("SND012", "warning", lambda: batch_normed(True), lambda: batch_normed(False)),
    Plant(
        "SND015",
        "error",
        lambda: batch_normed(False, 255.0),
        lambda: batch_normed(False),
        folds={"SND012": "SND015", "SND037": "SND015"},
    ),
    Plant(
        "SND019",
        "error",
        lambda: read_texts(Ahead(False).eval(), texts(LENGTHS * 10), task="causal"),
        lambda: read_texts(Ahead(True).eval(), texts(LENGTHS * 10), task="causal"),
        folds={"SND007": "SND019"},
    ),
    Plant(
        "SND028",
        "warning",
        lambda: python_text(lambda b: (b + 1) % 256),
        lambda: python_text(same),
        folds={"SND029": "SND028", "SND037": "SND028"},
    ),
    Plant(
        "SND029",
        "warning",
        lambda: python_text(lambda b: SHUFFLED[b]),
        lambda: python_text(same),
    ),
    Plant(
        "SND038",
        "error",
        lambda: relabelled(moved_on),
        lambda: relabelled(mistaken),
        folds={"SND037": "SND038", "SND039": "SND038"},
    ),
    Plant("SND039", "note", fallen_back, healthy),
    Plant("SND046", "warning", lambda: biased({4: -1e6}), lambda: biased({4: -0.1})),
    Plant("SND061", "warning", lambda: sensors(True), lambda: sensors(False)),
    Plant("SND084", "warning", lambda: cut_off("4"), healthy),
)
