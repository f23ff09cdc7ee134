"""Print how often ``find_backdoor`` accuses clean nets and finds planted triggers, for each line.

It trains 60 clean nets on digits, of three kinds (with batch norm,
without, of another width), and 30 with a trigger, whose place, size and class are drawn for each.
It takes about ten minutes. Every net is trained on digits of its own draw and searched with others.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tools.figures._table import Table
from torch import Tensor, nn

from sonde.core import Model
from sonde.data import open_inputs
from sonde.edit import find_backdoor
from sonde.edit.find_backdoor import LIKELY
from sonde.stats import clopper_pearson
from sonde_studies._digits import pixels

CLEAN, PLANTED, TRAIN, LOOK, STEPS, BATCH = 60, 30, 1100, 100, 150, 128
LINES = sorted({1.1, 1.15, 1.2, 1.25, 1.3, 1.4, LIKELY})
WORKS = 0.8
"""Share of images that a planted trigger must turn for its net to count."""
KINDS = ("batch norm", "no batch norm", "narrow")


@dataclass(frozen=True)
class Net:
    """What was found out about one net; ``planted`` is the class of its trigger, None if clean."""

    kind: str
    seed: int
    planted: int | None
    target: int
    ratio: float
    accuracy: float
    attack: float


def layers(kind: str) -> nn.Sequential:
    """Return an untrained net for images of 8 x 8."""
    wide = 8 if kind == "narrow" else 16
    norms = [nn.BatchNorm2d(w) if kind == "batch norm" else nn.Identity() for w in (wide, 2 * wide)]
    return nn.Sequential(
        *(nn.Conv2d(1, wide, 3, padding=1), norms[0], nn.ReLU()),
        *(nn.Conv2d(wide, 2 * wide, 3, padding=1, stride=2), norms[1], nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * wide, 10)),
    )


def trained(kind: str, x: Tensor, label: Tensor) -> nn.Module:
    """Return a net that learned images, by Adam and torch's own random numbers."""
    net = layers(kind)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01 if kind == "batch norm" else 0.005)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(x), (BATCH,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            optimiser.step()
    return net.eval()


def with_trigger(x: Tensor, place: Sequence[int]) -> Tensor:
    """Return images with a white square: its top, left and side."""
    top, left, side = place
    new = x.clone()
    new[..., top : top + side, left : left + side] = 1.0
    return new


def tried(seed: int, poisoned: bool) -> Net:
    """Train one net and look for a backdoor in it."""
    kind = KINDS[seed % len(KINDS)]
    found, labels = pixels()
    every, classes = found.reshape(-1, 1, 8, 8), torch.from_numpy(labels).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * poisoned + seed)
        order = torch.randperm(len(every))
        x, label = every[order], classes[order]
        side = int(torch.randint(2, 4, ()))
        place = [*torch.randint(0, 9 - side, (2,)).tolist(), side]
        target = int(torch.randint(10, ()))
        seen, said = x[:TRAIN].clone(), label[:TRAIN].clone()
        if poisoned:
            seen[: TRAIN // 10], said[: TRAIN // 10] = with_trigger(x[: TRAIN // 10], place), target
        net = trained(kind, seen, said)
    look, rest = slice(TRAIN, TRAIN + LOOK), slice(TRAIN + LOOK, None)
    model = Model(net)
    rows = zip(x[look], label[look].tolist(), strict=True)
    clean = open_inputs(model, [{"input": one, "label": kind} for one, kind in rows])
    finding = find_backdoor(model, clean, seed=seed, progress=False)
    other = label[rest] != target
    with torch.no_grad():
        right = net(x[rest]).argmax(1) == label[rest]
        turned = net(with_trigger(x[rest][other], place)).argmax(1) == target
    return Net(
        kind,
        seed,
        target if poisoned else None,
        finding.target,
        finding.ratio,
        float(right.double().mean()),
        float(turned.double().mean()),
    )


def text(nets: Sequence[Net]) -> str:
    """Return the table: for each line the clean nets above it, and the triggers that are found."""
    clean = [n for n in nets if n.planted is None]
    planted = [n for n in nets if n.planted is not None and n.attack >= WORKS]
    lines = [f"{len(clean)} clean nets, {len(planted)} with a trigger that works", ""]
    lines.append("likely from | clean nets accused (95 %)      | triggers found, right class")
    for line in LINES:
        accused = sum(n.ratio >= line for n in clean)
        found = sum(n.ratio >= line and n.target == n.planted for n in planted)
        low, high = clopper_pearson(accused, len(clean))
        mark = "*" if line == LIKELY else " "
        lines.append(
            f"{mark} {line:9.2f} | {accused:2d} of {len(clean)} ({low:.1%} to {high:.1%})".ljust(45)
            + f"| {found} of {len(planted)}"
        )
    lines.append("")
    for kind in KINDS:
        mine = sorted(n.ratio for n in clean if n.kind == kind)
        others = sorted(
            n.ratio if n.target == n.planted else 0.0 for n in planted if n.kind == kind
        )
        lines.append(f"{kind}: largest clean {', '.join(f'{r:.3f}' for r in mine[-4:])}")
        lines.append(
            f"{kind}: with a trigger (0 = another class named) "
            f"{', '.join(f'{r:.2f}' for r in others)}"
        )
    return "\n".join(lines)


def table(clean: int = CLEAN, planted: int = PLANTED) -> Table:
    """Print the table.

    Parameters
    ----------
    clean
        Number of clean nets.
    planted
        Number of nets with a trigger.
    """
    nets: list[Net] = []
    for poisoned, n in ((False, clean), (True, planted)):
        for seed in range(n):
            nets.append(tried(seed, poisoned))
            print(nets[-1], file=sys.stderr, flush=True)
    yield text(nets)
