"""Evidence of plain arrays, gathered as a scan gathers it, and states to plant faults in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from torch import Tensor, nn

from narrow import expect
from sonde.core.batch import Batch
from sonde.core.plan import Split
from sonde.core.stream import Stream
from sonde.detect import KNN, Mahalanobis
from sonde.engine.array_stream import ArrayStream
from sonde.engine.folding import observe_stream
from sonde.engine.passes import states_of
from sonde.engine.requests import Task, requests
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.gather import SAMPLED_COLUMNS, ScanStatistics, scan_statistics
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.versus.comparison import VersusEvidence
from sonde.stats import Calibrated


@dataclass(frozen=True, eq=False)
class Columns(Stream):
    """An array stream with further columns of its examples."""

    arrays: ArrayStream
    columns: Mapping[str, Tensor]

    @property
    def schema(self) -> Any:
        return self.arrays.schema

    @property
    def seed(self) -> int:  # type: ignore[override]
        return self.arrays.seed

    @property
    def group_keys(self) -> Sequence[bytes]:
        return self.arrays.group_keys

    @property
    def grouped(self) -> bool:
        return self.arrays.grouped

    def identity(self) -> dict[str, Any]:
        return self.arrays.identity()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for batch in self.arrays.batches(start, stop):
            extra = {n: c[batch.order] for n, c in self.columns.items() if n != "length"}
            length = self.columns.get("length")
            yield replace(
                batch, extra=extra, length=None if length is None else length[batch.order]
            )


@dataclass(frozen=True, eq=False)
class Gathered:
    """A stream, what was asked of its pass, and the evidence."""

    stream: Stream
    statistics: ScanStatistics
    evidence: Evidence


def gathered(
    x: Any,
    *,
    split: Split | None = None,
    tasks: Sequence[Task] = (),
    columns: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    **known: Any,
) -> tuple[Gathered, dict[str, Any]]:
    """Return the evidence of arrays and the states of further tasks."""
    arrays = Stream.of(x, **known)
    stream: Stream = Columns(arrays, columns) if columns else arrays
    have = {"label", "order", *(columns or ())} | ({"logits"} if "logits" in known else set())
    data = replace(data_evidence(arrays, "data"), **(facts or {}))
    statistics = scan_statistics(
        stream, [c for c in SAMPLED_COLUMNS if c in have], data.has_labels, split
    )
    wanted = {**statistics.requests(), **requests(tasks, split)}
    counters: dict[str, int] = {}
    states = observe_stream(stream, dict(sorted(wanted.items())), split)
    for site in statistics.pooled:
        counters[f"rows|{site.key}"] = len(stream)
    evidence = Evidence(
        statistics.sites(states, counters),
        statistics.sampled_columns(states),
        data,
        counters,
        answer_counts=statistics.answer_counts(states),
    )
    return Gathered(stream, statistics, evidence), states


def evidence_of(x: Any, **known: Any) -> Evidence:
    """Return the evidence of arrays: one site, or a mapping of several."""
    return gathered(x, **known)[0].evidence


def versus_of(
    x: Any, y: Any, *, other: Mapping[str, Any] | None = None, alpha: float = 0.01, **known: Any
) -> Evidence:
    """Return the evidence of ``x`` compared with ``y``; detectors are fitted on half of ``x``."""
    split = Split(0.5, 0)
    keys = list(x) if isinstance(x, Mapping) else ["x"]
    tasks = [Task(Calibrated(m), (k,)) for k in keys for m in (Mahalanobis(), KNN(m=2048))]
    mine, states = gathered(x, split=split, tasks=tasks, **known)
    theirs = evidence_of(y, **(other or {}))
    scorers = {
        (type(t.instrument.detector).__name__, t.keys[0]): t.instrument.result(  # type: ignore[attr-defined]
            **states_of(t, states, split)
        )
        for t in tasks
    }
    versus = VersusEvidence(
        {s.schema.key: s for s in theirs.sites}, theirs.columns, theirs.data, scorers, alpha
    )
    return replace(mine.evidence, versus=versus)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits with pixels in [0, 1], and their labels."""
    found = expect(Bunch, load_digits())
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


@cache
@torch.enable_grad()
def net(trained: bool, seed: int = 0) -> nn.Sequential:
    """Return a ReLU net of three blocks on digits, of random weights or trained on half of them."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(64, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    if trained:
        x, label = digits()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[::2]), label[::2]).backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def states(x: Tensor, trained: bool = True, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return the states after each block of the net, by site, and its logits."""
    found: dict[str, Tensor] = {}
    model = net(trained, seed)
    for i, layer in enumerate(model):
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found[f"blocks.{i // 2}"] = x
    return found, x


def shuffled(n: int, seed: int = 0) -> Tensor:
    """Return a random order."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(n))
