"""Runs in the environment of evidently: which columns of a table moved, and whether labels did.

Both get the same two halves of scikit-learn's breast cancer table, the second with one fault. A
scan also runs a net that was trained on the first half; evidently compares columns alone.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import sonde
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from benchmarks.protocol import medians
from sonde.findings.settings import ScanSettings

LABEL = "label"
STEPS = 300
KINDS = {
    "a column in another unit": ("factor",),
    "a third of a column in another unit": ("factor", "other", "shift", "new values"),
    "two columns exchanged": ("exchanged",),
    "a column stuck from the middle on": ("one value", "new values"),
    "a fifth of a column at -999": ("missing", "new values", "one value"),
    "a column raised by half its spread": ("shift",),
}
"""The words of a scan that say what happened."""
LABEL_SHIFT = "label shift"
Frame = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two tables by columns, the labels among them, and the columns of the second with a fault."""

    data: Frame
    other: Frame
    bad: frozenset[str]


@dataclass(frozen=True)
class Named:
    """The columns that are said to have moved, and the words for how; both may hold the label."""

    columns: frozenset[str]
    kinds: dict[str, str]


class Standardised(nn.Module):
    """A perceptron over columns that it standardises itself."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.mean, self.scale = nn.Buffer(x.mean(0)), nn.Buffer(x.std(0))
        self.body = nn.Sequential(
            nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits for each row."""
        return self.body((x - self.mean) / self.scale)


@cache
def halves(seed: int) -> tuple[Frame, Frame]:
    """Return the table in two halves, drawn by a seed."""
    found: Any = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(found.target))
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    x, label = found.data[order].astype(np.float32), found.target[order]
    half = len(x) // 2
    return tuple(  # pyright: ignore[reportReturnType]
        {name: x[rows, i] for i, name in enumerate(names)} | {LABEL: label[rows]}
        for rows in (slice(half), slice(half, None))
    )


@cache
def trained(seed: int) -> nn.Module:
    """Return a net that learned the first half."""
    data = halves(seed)[0]
    x, label = _inputs(data), torch.from_numpy(data[LABEL])
    torch.manual_seed(seed)
    net = Standardised(x)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), label[rows]).backward()
        optimiser.step()
    return net.requires_grad_(False).eval()


def _inputs(frame: Frame) -> Tensor:
    return torch.from_numpy(np.stack([v for k, v in frame.items() if k != LABEL], 1))


def planted(fault: str, seed: int) -> Pair:
    """Return both halves, the second with one fault, or without."""
    data, other = halves(seed)
    other = {name: values.copy() for name, values in other.items()}
    draw = np.random.default_rng(1_000 + seed)
    names, n = [name for name in other if name != LABEL], len(other[LABEL])
    one, two = draw.choice(names, 2, replace=False).tolist()
    some = draw.random(n)
    if fault == LABEL_SHIFT:
        kept = (other[LABEL] == 1) | (some < 0.3)
        return Pair(data, {name: v[kept] for name, v in other.items()}, frozenset({LABEL}))
    if fault == "a column in another unit":
        other[one] *= np.float32(draw.choice([0.3048, 2.54, 10.0]))
    elif fault == "a third of a column in another unit":
        other[one] *= np.where(some < 1 / 3, np.float32(10), np.float32(1))
    elif fault == "two columns exchanged":
        other[one], other[two] = other[two], other[one]
        return Pair(data, other, frozenset({one, two}))
    elif fault == "a column stuck from the middle on":
        other[one][n // 2 :] = other[one][n // 2]
    elif fault == "a fifth of a column at -999":
        other[one][some < 0.2] = -999
    elif fault == "a column raised by half its spread":
        other[one] += 0.5 * data[one].std()
    return Pair(data, other, frozenset({one} if fault else ()))


def ours(pair: Pair, seed: int) -> Named:
    """Return what a scan says."""
    sides = [{name: v.tolist() for name, v in side.items()} for side in (pair.data, pair.other)]
    report = sonde.scan(
        trained(seed), sides[0], versus=sides[1], settings=ScanSettings(progress=False)
    )
    moves = report.json()["versus"]["columns"]
    kinds = {move["column"]: move["kind"] for move in moves}
    if any(f["code"] == "SND054" for f in report.findings):
        kinds[LABEL] = LABEL_SHIFT
    return Named(frozenset(kinds), kinds)


def theirs(pair: Pair, seed: int) -> Named:
    """Return what evidently's preset for drift says."""
    import pandas as pd
    from evidently import (  # pyright: ignore[reportMissingImports]
        DataDefinition,
        Dataset,
        Report,
    )
    from evidently.presets import DataDriftPreset  # pyright: ignore[reportMissingImports]

    definition = DataDefinition(
        numerical_columns=[name for name in pair.data if name != LABEL],
        categorical_columns=[LABEL],
    )
    data, other = (
        Dataset.from_pandas(pd.DataFrame(side), data_definition=definition)
        for side in (pair.data, pair.other)
    )
    found = Report([DataDriftPreset()]).run(current_data=other, reference_data=data)
    moved: set[str] = set()
    for metric in found.dict()["metrics"]:
        how = metric["config"]
        if "column" in how:
            beyond = metric["value"] - how["threshold"]
            moved |= {how["column"]} if (beyond < 0) == ("p_value" in how["method"]) else set()
    return Named(frozenset(moved), {})


ARMS: dict[str, Callable[[Pair, int], Named]] = {"sonde": ours, "evidently": theirs}


def compared(seeds: int) -> dict[str, Any]:
    """Return for each fault and arm what was missed, named beside it, and rightly explained."""
    table: dict[str, Any] = {"version": peer_version("evidently"), "n": len(halves(0)[1][LABEL])}
    for fault in ("", *KINDS, LABEL_SHIFT):
        table[fault] = {arm: _judged(arm, fault, seeds) for arm in ARMS}
    return table


def _judged(arm: str, fault: str, seeds: int) -> dict[str, float]:
    hits, planned, beside, explained = 0, 0, [], []
    for seed in range(seeds):
        pair = planted(fault, seed)
        named = ARMS[arm](pair, seed)
        hits += len(named.columns & pair.bad)
        planned += len(pair.bad)
        beside.append(len(named.columns - pair.bad))
        words = KINDS.get(fault, (LABEL_SHIFT,))
        explained += [named.kinds.get(column) in words for column in pair.bad]
    return {
        "missed": 1 - hits / max(planned, 1),
        "beside": statistics.mean(beside),
        "explained": statistics.mean(explained) if explained else 0.0,
    }


def seconds(rounds: int) -> dict[str, float]:
    """Return the median seconds of processor time of one comparison of each arm, imports done."""
    pair = planted(LABEL_SHIFT, 0)
    return medians({arm: partial(run, pair, 0) for arm, run in ARMS.items()}, rounds)


def memory(arm: str) -> float:
    """Return the MiB that one comparison takes at most."""
    ARMS[arm](planted("", 1), 1)
    pair = planted(LABEL_SHIFT, 0)
    trained(0)
    return added_peak(lambda: ARMS[arm](pair, 0))
