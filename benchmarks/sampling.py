"""Nearest neighbours in a sample of a large bank: what is lost, and what a query costs."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.nets import forward_of, token_batch, transformer
from benchmarks.protocol import AGAIN, PLAIN, interleaved, spread_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.detect import KNN
from sonde.engine.running import Running
from sonde.metrics import auroc

USUAL, UNUSUAL = 64, 8
LOST, QUERY = 0.005, 0.01
CHUNK = 50_000
K = 50
APART = {"apart": 0.35, "overlapping": 0.2}


def sample_rows(size: Size) -> list[Row]:
    """AUROC of the sample against that of all rows, and the time of a query.

    The budget is for clusters that lie apart. If they overlap, the score depends on the
    density, which a hundredth of the rows estimates less well: the line is shown without a budget.
    """
    found: list[Row] = []
    scorer: Any = None
    fresh = torch.empty(0)
    for kind, spread in APART.items():
        scorer, fresh, areas = _areas(size, spread)
        n, width, m, _ = _shape(size)
        what = f"KNN, {m:,} of {n:,} x {width} rows, clusters {kind}: AUROC lost against all rows"
        note = f"{areas[0]:.4f} against {areas[1]:.4f}; {USUAL} usual and {UNUSUAL} unusual"
        budget = LOST if kind == "apart" else None
        found.append(Row("sample", what, abs(areas[1] - areas[0]), "", budget, note=note))
    return [*found, _query(scorer, fresh[:1], size)]


def _shape(size: Size) -> tuple[int, int, int, int]:
    return size.pick((1_000_000, 512, 10_000, 1_000), (4_000, 32, 1_000, 200))


def _areas(size: Size, spread: float) -> tuple[Any, Tensor, list[float]]:
    n, width, m, n_fresh = _shape(size)
    fresh, unusual = queries(n_fresh, width, spread)
    running = Running(KNN(k=K, m=m))
    whole = Nearest(fresh, K)
    for start in range(0, n, CHUNK):
        rows = drawn(start, min(start + CHUNK, n), width, spread)
        running.update(rows, ids=[str(i) for i in range(start, start + len(rows))])
        whole.add(rows)
    scorer: Any = running.result()
    scores = (scorer.score(fresh), whole.distance())
    return scorer, fresh, [float(auroc(s, unusual, resamples=0).value) for s in scores]


def _query(scorer: Any, one: Tensor, size: Size) -> Row:
    depth, dim, length = size.pick((12, 768, 64), (3, 64, 16))
    plain = forward_of(transformer(depth, dim), **token_batch(1, length))
    times = size.pick(20, 3)

    def ours() -> None:
        for _ in range(times):
            scorer.score(one)

    taken = interleaved({PLAIN: plain, "query": ours, AGAIN: plain}, size.rounds)
    query = statistics.median(taken["query"]) / times
    forward = statistics.median(taken[PLAIN])
    spread = spread_of([a / b for a, b in zip(taken[AGAIN], taken[PLAIN], strict=True)])
    return Row(
        "sample",
        f"KNN, one query of {len(scorer.bank):,} rows over a forward of 1 x {length} tokens",
        query / forward,
        budget=QUERY,
        spread=spread * query / forward,
        rounds=size.rounds,
        note=f"{1e3 * query:.3f} ms against {1e3 * forward:.1f} ms",
    )


def centres(width: int, spread: float) -> Tensor:
    """Return the middles of the usual clusters, then those of the unusual ones."""
    generator = torch.Generator().manual_seed(7)
    return spread * torch.randn(USUAL + UNUSUAL, width, generator=generator)


def drawn(start: int, stop: int, width: int, spread: float) -> Tensor:
    """Return rows ``start`` to ``stop`` of the usual clusters."""
    generator = torch.Generator().manual_seed(1_000 + start)
    which = torch.randint(USUAL, (stop - start,), generator=generator)
    return torch.randn(stop - start, width, generator=generator).add_(centres(width, spread)[which])


def queries(n: int, width: int, spread: float) -> tuple[Tensor, Tensor]:
    """Return fresh rows, half usual and half unusual, and which are unusual."""
    generator = torch.Generator().manual_seed(3)
    unusual = torch.arange(n) >= n // 2
    which = torch.where(
        unusual,
        USUAL + torch.randint(UNUSUAL, (n,), generator=generator),
        torch.randint(USUAL, (n,), generator=generator),
    )
    return torch.randn(n, width, generator=generator) + centres(width, spread)[which], unusual


class Nearest:
    """The k smallest distances of queries to all rows that were added, by brute force."""

    def __init__(self, queries: Tensor, k: int) -> None:
        self._queries, self._k = torch.nn.functional.normalize(queries), k
        self._best = torch.full((len(queries), 0), float("-inf"))

    def add(self, rows: Tensor) -> None:
        """Look at more rows."""
        for part in _unit_parts(rows):
            near = torch.cat([self._best, self._queries @ part.T], dim=1)
            self._best = near.topk(min(self._k, near.shape[1]), dim=1).values

    def distance(self) -> Tensor:
        """Return the distance between unit rows to the k-th nearest."""
        return (2 - 2 * self._best[:, -1]).clamp(min=0).sqrt()


def _unit_parts(rows: Tensor) -> Iterator[Tensor]:
    for part in rows.split(10_000):
        yield torch.nn.functional.normalize(part)
