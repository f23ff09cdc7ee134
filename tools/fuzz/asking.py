"""What sonde says: rows, fits and scores, and every line that it wrote meanwhile."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tools.fuzz.plain import NEIGHBOURS, SHRINKAGE, Rows

import sonde
from sonde.core import Batch, SiteSchema, Stream
from sonde.detect import KNN, MSP, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.reading.checking import check_rows
from sonde.run.scoring.score import score
from sonde.store import Store, write_store

UNIT = 8


@dataclass
class Said(logging.Handler):
    """What was written to the log and warned of."""

    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.INFO)

    def __hash__(self) -> int:
        return id(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    @property
    def text(self) -> str:
        """All that was said."""
        return "\n".join(self.lines)


@contextmanager
def listening() -> Iterator[Said]:
    """Hear the log of sonde and all warnings."""
    said, log = Said(), logging.getLogger("sonde")
    level, propagate = log.level, log.propagate
    log.addHandler(said)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: said.lines.append(str(message))
            yield said
    finally:
        log.removeHandler(said)
        log.setLevel(level)
        log.propagate = propagate


@dataclass(frozen=True)
class Reading:
    """The rows of a stream: by key, for each item of the data in its order; what was said of it."""

    schema: tuple[SiteSchema, ...]
    rows: dict[str, Rows]
    stream: Stream
    said: list[str] = field(default_factory=list)


def read(
    module: ModuleType, sites: Any, reducer: Any, batch_size: int, logits: bool | None = None
) -> Reading:
    """Return what ``sonde.read`` gives."""
    stream = sonde.read(module.model(), module.items(), sites, reducer, batch_size, logits=logits)
    return _read(stream, stream.source_rows)


def stored(reading: Reading, folder: Path) -> Reading:
    """Return the same rows from a store."""
    write_store(reading.stream, folder, unit_size=UNIT)
    return _read(Store(folder, checked=True), reading.stream.source_rows)


def _read(stream: Stream, source: Any) -> Reading:
    n = len(stream)
    parts: dict[str, list[list[tuple[int, np.ndarray]]]] = {
        s.key: [[] for _ in range(n)] for s in stream.schema
    }
    check_rows(stream)
    bounds = stream.units(UNIT)
    for start, stop in pairwise(bounds):
        for batch in list(stream.batches(start, stop)):
            _add(parts, batch, source)
    rows = {
        key: [np.stack([x for _, x in sorted(p, key=lambda one: one[0])]) for p in each if p]
        for key, each in parts.items()
    }
    return Reading(tuple(stream.schema), rows, stream)


def _add(parts: dict[str, list[list[tuple[int, np.ndarray]]]], batch: Batch, source: Any) -> None:
    for key, x in batch.rows.items():
        numbers = x.double().numpy()
        for row, example, position in zip(
            numbers, batch.example[key].tolist(), batch.position[key].tolist(), strict=True
        ):
            order = int(batch.order[example])
            item = order if source is None else int(source[order])
            parts[key][item].append((position, row))


@dataclass(frozen=True)
class Scores:
    """The scores of all rows by method and site, in the order of items; the items of each id."""

    of: dict[tuple[str, str], np.ndarray]
    rows: dict[str, list[int]]


def fitted_scores(
    module: ModuleType, reading: Reading, batch_size: int, logits: bool, workers: int = 0
) -> tuple[Any, Scores]:
    """Return what ``fit`` and then ``score`` give on the live model."""
    methods: list[Any] = [Mahalanobis(shrinkage=SHRINKAGE, classes=False), KNN(k=NEIGHBOURS)]
    methods += [MSP()] if logits else []
    how = {"reduction": "rows", "progress": False, "workers": workers}
    fitted = fit(methods, reading.stream, calibrate=0, unit_size=UNIT, **how)
    table = score(fitted, module.model(), module.items(), batch_size=batch_size, **how)
    lines = table.to_pylist()
    rows: dict[str, list[int]] = {}
    for line in lines:
        if line["row"] not in rows.setdefault(line["id"], []):
            rows[line["id"]].append(line["row"])
    return fitted, Scores(_scores(lines), rows)


def stored_scores(fitted: Any, folder: Path, live: Scores) -> Scores:
    """Return the scores of rows in a store, which knows its items by their ids alone."""
    lines = score(fitted, Store(folder, checked=True), reduction="rows", progress=False).to_pylist()
    met: Counter[tuple[Any, ...]] = Counter()
    for line in lines:
        alike = tuple(line[name] for name in ("id", "position", "site", "instrument"))
        line["row"] = live.rows[line["id"]][met[alike]]
        met[alike] += 1
    return Scores(_scores(lines), live.rows)


def _scores(lines: list[dict[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    found: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
    for line in lines:
        key = line["instrument"], line["site"]
        found.setdefault(key, []).append((line["row"], line["position"], line["score"]))
    return {k: np.array([s for *_, s in sorted(v, key=_place)]) for k, v in found.items()}


def _place(line: tuple[int, int, float]) -> tuple[int, int]:
    return line[:2]
