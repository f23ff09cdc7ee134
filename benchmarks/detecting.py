"""Detectors against pytorch-ood, and against a plain transcription of the NAC formula."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against, seconds_note
from benchmarks.child import ChildError, run_child
from benchmarks.environments import PeerError, python_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde.detect import NAC
from sonde.stats.influence_bins import thresholds

PEER = "pytorch-ood"
FLAT = 1.05
NAC_BUDGET = 1 / 20
STANDIN = "an empty stand-in for torchvision"
METHODS = {
    "mahalanobis": "Mahalanobis",
    "knn_whole": "KNN, all rows in the bank",
    "knn": "KNN, default sample",
}


def detector_rows(size: Size) -> list[Row]:
    """Fit and score of Mahalanobis and of nearest neighbours, time and memory."""
    try:
        python = python_of(PEER, size.offline)
    except PeerError as error:
        return [not_measured("detect", f"{m} against {PEER}", str(error)) for m in METHODS.values()]
    rows = []
    for method, title in METHODS.items():
        try:
            rows += _against(method, title, python, size)
        except ChildError as error:
            rows.append(not_measured("detect", f"{title} against {PEER}", str(error)))
    return rows


def _against(method: str, title: str, python: Path, size: Size) -> list[Row]:
    n, width = size.pick((60_000, 512), (400, 16))
    n_fresh = n if method == "mahalanobis" else size.pick(2_000, 50)

    def ask(function: str, rows: int, **options: Any) -> Any:
        target = f"benchmarks.ood_runner:{function}"
        shape = {"method": method, "n": rows, "width": width, "n_fresh": n_fresh}
        return run_child(target, python=python, **shape, **options)

    found = ask("times", n, rounds=size.rounds)
    many, few = ask("memory", n), ask("memory", n // 4)
    theirs = ask("memory", n, theirs=True)
    name = f"{title}, fit {n} x {width}, score {n_fresh}: time against {found['version']}"
    speed = f"{seconds_note(found)}, scores correlate {found['correlation']:.6f}; {STANDIN}"
    adds = f"adds {many['added']:.0f} and {few['added']:.0f} MiB"
    growth = many["beyond"] / few["beyond"]
    flat = None if method == "knn_whole" else FLAT
    return [
        Row("detect", name, found["median"], "x", 1.0, found["spread"], found["rounds"], speed),
        Row(
            "detect",
            f"{title}: peak memory beyond the rows, {n} against {n // 4} rows",
            growth,
            budget=flat,
            note=f"{adds}, the peer {theirs['added']:.0f} MiB at {n}",
        ),
    ]


def nac_rows(size: Size) -> list[Row]:
    """Fit and score of NAC on given states and gradients against one row at a time."""
    n, n_fresh, width = size.pick((20_000, 20_000, 512), (300, 100, 16))
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(n, width, generator=generator) for _ in range(2))
    fresh, fresh_grad = (torch.randn(n_fresh, width, generator=generator) for _ in range(2))
    kept: dict[str, Tensor] = {}

    def ours() -> None:
        scorer = NAC(alpha=1.0).fit(x, grad=grad)
        kept["ours"] = scorer.score(fresh, fresh_grad)

    def theirs() -> None:
        coverage = transcribed_fit(x, grad, 1.0, 50, 0.05)
        kept["theirs"] = transcribed_scores(fresh, fresh_grad, coverage, 1.0, 50)

    found = against(ours, theirs, size.rounds)
    apart = float((kept["ours"].double() - kept["theirs"]).abs().max())
    return [
        Row(
            "nac",
            f"NAC, fit {n} x {width}, score {n_fresh}, against its formula row by row",
            found["median"],
            budget=NAC_BUDGET,
            spread=found["spread"] * found["median"],
            rounds=found["rounds"],
            note=f"{1 / found['median']:.0f} times as fast, {seconds_note(found)}, "
            f"scores differ by {apart:.1e}",
        )
    ]


def transcribed_fit(x: Tensor, grad: Tensor, alpha: float, n_bins: int, fill: float) -> Tensor:
    """Return the coverage of each unit's bins, counted row by row."""
    grid = thresholds(n_bins)
    counts = torch.zeros(x.shape[1], n_bins - 1, dtype=torch.float64)
    for row, slope in zip(x, grad, strict=True):
        state = torch.sigmoid(alpha * row.double() * slope.double())
        counts += is_inside(state, grid)
    return (counts / max(1, round(fill * len(x)))).clamp(max=1.0)


def transcribed_scores(
    x: Tensor, grad: Tensor, coverage: Tensor, alpha: float, n_bins: int
) -> Tensor:
    """Return one minus the mean coverage of each row, row by row."""
    grid = thresholds(n_bins)
    found = []
    for row, slope in zip(x, grad, strict=True):
        state = torch.sigmoid(alpha * row.double() * slope.double())
        found.append(1.0 - coverage[is_inside(state, grid)].mean())
    return torch.stack(found)


def is_inside(state: Tensor, grid: Tensor) -> Tensor:
    """Return, for each unit and interval of the grid, whether the unit's state lies in it."""
    return (state[:, None] >= grid[:-1]) & (state[:, None] < grid[1:])
