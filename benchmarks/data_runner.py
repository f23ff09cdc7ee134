"""Runs in the environment of cleanlab: what a scan and Datalab say of digits with planted faults.

Both see the same net, trained on one half, and the same rows of the other half. Datalab gets the
states before the head and the probabilities; a scan runs the net itself.
"""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sonde
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from sonde.findings.settings import ScanSettings
from sonde.report import Report

HIDDEN = 6
STEPS = 500


@dataclass(frozen=True)
class Rows:
    """Rows that are audited, and which of them have the fault."""

    x: Tensor
    label: Tensor
    bad: Tensor


@cache
def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a net trained on half of the digits, and the other half in random order."""
    pixels, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    label = torch.tensor(target[order])
    torch.manual_seed(0)
    wide = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    net = nn.Sequential(*wide, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    half = len(x) // 2
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(STEPS):
        rows = torch.randint(half, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), label[rows], label_smoothing=0.05).backward()
        optimiser.step()
    return net.requires_grad_(False).eval(), x[half:], label[half:]


def planted(fault: str, seed: int) -> Rows:
    """Return the held-out half with one fault, or without."""
    _, x, label = trained()
    draw = np.random.default_rng(seed)
    order = torch.from_numpy(draw.permutation(len(x)))
    x, label = x[order].clone(), label[order].clone()
    bad = torch.zeros(len(x), dtype=torch.bool)
    chosen = torch.from_numpy(draw.choice(len(x), SHARES.get(fault, 0) * len(x) // 100, False))
    bad[chosen] = True
    n = len(chosen)
    if fault == "one class mislabelled":
        bad = (label == 4) & torch.from_numpy(draw.random(len(x)) < 0.35)
        label[bad] = 9
    elif fault == "wrong labels":
        label[chosen] = (label[chosen] + torch.from_numpy(draw.integers(1, 10, n))) % 10
    elif fault == "outliers":
        x[chosen] = torch.from_numpy(draw.random((n, 64), dtype=np.float32))
    elif fault == "near duplicates":
        one, two = chosen[: n // 2], chosen[n // 2 : n // 2 * 2]
        noise = torch.from_numpy(draw.normal(0, 0.002, (len(two), 64)).astype(np.float32))
        x[two], label[two] = x[one] + noise, label[one]
    elif fault == "rows in an order":
        brighter = torch.argsort(x.sum(1) + 3 * torch.from_numpy(draw.normal(size=len(x))))
        x, label = x[brighter], label[brighter]
    elif fault == "weak group":
        x[chosen] = x[chosen].reshape(-1, 8, 8).flip(2).reshape(-1, 64)
    return Rows(x, label, bad)


SHARES = {"wrong labels": 5, "outliers": 2, "near duplicates": 6, "weak group": 10}
FAULTS = (*SHARES, "one class mislabelled", "rows in an order")


def ours(rows: Rows) -> dict[str, list[int]]:
    """Return the rows that a scan names for each fault; all of them for an order."""
    net, _, _ = trained()
    items = [
        {"id": str(i), "x": x, "label": int(k)}
        for i, (x, k) in enumerate(zip(rows.x, rows.label, strict=True))
    ]
    report = sonde.scan(net, items, settings=ScanSettings(progress=False))
    return _named(report, len(items))


def theirs(rows: Rows) -> dict[str, list[int]]:
    """Return the rows that Datalab names for each fault; all of them for an order."""
    from cleanlab import Datalab  # pyright: ignore[reportMissingImports]

    net, _, _ = trained()
    states = net[:HIDDEN](rows.x)
    chance = net[HIDDEN](states).softmax(1).numpy()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Datalab({"label": rows.label.tolist()}, label_name="label", verbosity=0)
        lab.find_issues(features=states.numpy(), pred_probs=chance)
    issues = lab.get_issues()
    names = {
        "wrong labels": "label",
        "one class mislabelled": "label",
        "outliers": "outlier",
        "near duplicates": "near_duplicate",
        "weak group": "underperforming_group",
        "rows in an order": "non_iid",
    }
    found = {}
    for fault, name in names.items():
        column = f"is_{name}_issue"
        hits = np.flatnonzero(issues[column].to_numpy()).tolist() if column in issues else []
        found[fault] = hits
    summary = lab.get_issue_summary().set_index("issue_type")["num_issues"]
    is_ordered = int(summary.get("non_iid", 0)) > 0
    found["rows in an order"] = list(range(len(rows.x))) if is_ordered else []
    return found


def _named(report: Report, n: int) -> dict[str, list[int]]:
    rows = {f["code"]: [int(i) for i in f.rows] for f in report.findings}
    is_ordered = bool(rows.keys() & {"SND044", "SND047"})
    return {
        "wrong labels": rows.get("SND034", []),
        "one class mislabelled": rows.get("SND034", []),
        "outliers": [int(row["id"]) for row in report.json()["rows"]["far"]],
        "near duplicates": [*rows.get("SND041", []), *rows.get("SND042", [])],
        "weak group": rows.get("SND061", []),
        "rows in an order": list(range(n)) if is_ordered else [],
    }


ARMS: dict[str, Callable[[Rows], dict[str, list[int]]]] = {"sonde": ours, "cleanlab": theirs}


def compared(seeds: int) -> dict[str, Any]:
    """Return precision and recall of each fault and arm, and what is named in healthy rows."""
    table: dict[str, Any] = {"version": peer_version("cleanlab"), "n": len(trained()[1])}
    for fault in FAULTS:
        table[fault] = {arm: _judged(arm, fault, seeds) for arm in ARMS}
    return table


def _judged(arm: str, fault: str, seeds: int) -> dict[str, float]:
    precision, recall, false = [], [], []
    for seed in range(seeds):
        rows = planted(fault, seed)
        named = torch.zeros(len(rows.x), dtype=torch.bool)
        named[ARMS[arm](rows)[fault]] = True
        if fault == "rows in an order":
            recall.append(float(named.any()))
            precision.append(1.0)
        else:
            right = float((named & rows.bad).sum())
            recall.append(right / float(rows.bad.sum()))
            precision.append(right / max(float(named.sum()), 1.0) if named.any() else 0.0)
        false.append(len(_healthy(arm, seed)[fault]))
    return {
        "precision": statistics.mean(precision),
        "recall": statistics.mean(recall),
        "false": statistics.mean(false),
    }


@cache
def _healthy(arm: str, seed: int) -> dict[str, list[int]]:
    return ARMS[arm](planted("", seed))


def seconds(rounds: int) -> dict[str, float]:
    """Return the median seconds of one whole audit of each arm, imports done."""
    rows, found = planted("wrong labels", 0), {}
    for arm, run in ARMS.items():
        run(rows)
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            run(rows)
            taken.append(time.perf_counter() - began)
        found[arm] = statistics.median(taken)
    return found


def memory(arm: str) -> float:
    """Return the MiB that one audit takes at most."""
    rows = planted("wrong labels", 0)
    ARMS[arm](planted("", 1))
    return added_peak(lambda: ARMS[arm](rows))
