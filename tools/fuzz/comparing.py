"""One model through every command, and what came of each."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from tools.fuzz import asking, plain
from tools.fuzz.asking import Reading, Said, Scores
from tools.fuzz.drawing import Drawn
from tools.fuzz.plain import Plain, Rows
from tools.fuzz.writing import Spot

from sonde.core import Reducer, SiteSchema
from sonde.core.errors import SondeError
from sonde.tap.streams.soundness import RowFault

EQUAL, REFUSED, WARNED = "equal", "refused", "warned"
DIFFERENT, TRACEBACK, UNKNOWN = "SILENT DIFFERENCE", "traceback", "not compared"
VERDICTS = (EQUAL, REFUSED, WARNED, UNKNOWN, TRACEBACK, DIFFERENT)
MOST_SPOTS, MOST_FITTED = 6, 3


def opening(cause: Literal["chance", "company"]) -> str:
    """Return the first clause of the warning of rows with this fault."""
    return str(RowFault("", 0.0, cause)).partition(", differ")[0]


NAMED_BY = {"random": opening("chance"), "reorders": opening("company")}
"""What a warning has to say of a model's rows, by what the model does to them."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command at a place of a model."""

    number: int
    command: str
    place: str
    verdict: str
    why: str = ""


class Trial:
    """One model: its truth, and what each command of sonde made of it.

    Parameters
    ----------
    drawn : Drawn
    module : module
        Of its source.
    folder : path
        For stores.
    workers : bool
        Fit and score in processes too.
    """

    def __init__(self, drawn: Drawn, module: ModuleType, folder: Path, workers: bool) -> None:
        self.drawn, self.module, self.folder, self.workers = drawn, module, folder, workers
        self.truth: Plain = plain.look(drawn, module)
        self.outcomes: list[Outcome] = []
        self.rng = np.random.default_rng(drawn.number)

    def run(self) -> list[Outcome]:
        """Try every command."""
        small, large = int(self.rng.integers(1, 6)), 64
        auto = self._read("read auto", "auto", "auto", small)
        if auto is not None:
            self._stored("read auto, stored", auto, "auto")
        asked = self._asked()
        reducer = str(self.rng.choice(["mean", "positions", "auto", "mean"]))
        several = self._read(
            "read", [self._site(s) for s in asked], reducer, small, one=len(asked) == 1
        )
        if several is None and len(asked) > 1:
            asked = [
                s for s in asked if self._read("read", [self._site(s)], reducer, small, one=True)
            ]
        elif several is not None and several.schema:
            self._read("read, other batches", [self._site(s) for s in asked], reducer, large)
            self._stored("read, stored", several, "several")
        if asked:
            self._score([self._site(s) for s in asked[-MOST_FITTED:]], small, large)
        return self.outcomes

    def _asked(self) -> list[Spot]:
        spots = self.drawn.spots
        chosen = self.rng.permutation(len(spots))[:MOST_SPOTS]
        return [spots[i] for i in sorted(chosen)]

    def _read(
        self, command: str, sites: Any, reducer: str, batch_size: int, one: bool = False
    ) -> Reading | None:
        """Read and compare; where one place is refused, name its axis and try again."""
        with self._judged(command, str(sites)) as said:
            reading = asking.read(self.module, sites, reducer, batch_size)
            reading.said.extend(said.lines)
            self._compare(command, reading, said)
            if sites == "auto":
                self._compare_sites(command, reading, said)
            return reading
        if one and "axis=" in self.outcomes[-1].why:
            spot = next(s for s in self.drawn.spots if self._site(s) == sites[0])
            with self._judged("read by axis", sites[0]) as said:
                how = Reducer("mean", axis=spot.features[0])
                self._compare(
                    "read by axis", asking.read(self.module, sites, how, batch_size), said
                )
        return None

    def _stored(self, command: str, live: Reading, name: str) -> None:
        with self._judged(command, "all") as said:
            said.lines += live.said  # a stream is spoken of once
            again = asking.stored(live, self.folder / name)
            if not self.drawn.facts:
                for key, rows in live.rows.items():
                    same = all(map(_same_bits, rows, again.rows[key]))
                    self._add(command, key, EQUAL if same else DIFFERENT, "other bits than live")
            self._compare(command, again, said)

    def _score(self, sites: list[str], small: int, large: int) -> None:
        wants = self.drawn.logits is not None
        with self._judged("fit and score", str(sites)) as said:
            try:  # a store brings logits of any form only where it is asked for them
                reading = asking.read(self.module, sites, "mean", small, wants or None)
                fitted, scores = asking.fitted_scores(self.module, reading, large, wants)
            except SondeError as error:
                if not wants or "logits" not in str(error):
                    raise
                self._add("score msp", "logits", REFUSED, str(error))
                reading = asking.read(self.module, sites, "mean", small)
                fitted, scores = asking.fitted_scores(self.module, reading, large, False)
            self._compare_scores("fit and score", reading, scores, said)
            self._score_stored(reading, fitted, scores)
            if self.workers:
                _, apart = asking.fitted_scores(self.module, reading, large, False, workers=2)
                self._compare_scores("fit and score, 2 workers", reading, apart, said)

    def _score_stored(self, reading: Reading, fitted: Any, live: Scores) -> None:
        with self._judged("score a store", "all"):
            folder = self.folder / "fitted"
            asking.stored(reading, folder)
            found = asking.stored_scores(fitted, folder, live)
            for key, scores in live.of.items():
                truth = self._true_scores(*key, reading)
                if truth is None:
                    continue
                ok = _close(found.of[key], scores, truth[1]) or bool(self.drawn.facts)
                self._add("score a store", str(key), EQUAL if ok else DIFFERENT, "not as live")

    def _site(self, spot: Spot) -> str:
        several = any(s.path == spot.path and s.call for s in self.drawn.spots)
        call = f"@{spot.call}" if several else ""
        return f"{spot.path}{call}:{spot.port}" + (f".{spot.key}" if spot.key else "")

    @contextmanager
    def _judged(self, command: str, place: str) -> Iterator[Said]:
        """Keep an error as an outcome: a line of sonde's, or a traceback."""
        with asking.listening() as said:
            try:
                yield said
            except SondeError as error:
                self._add(command, place, REFUSED, str(error).splitlines()[0])
            except Exception as error:  # whatever it is, it is what a user would see
                at = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(at.filename).name}:{at.lineno}"
                self._add(command, place, TRACEBACK, f"{type(error).__name__} at {where}: {error}")

    def _add(self, command: str, place: str, verdict: str, why: str = "") -> None:
        why = "" if verdict == EQUAL else why.splitlines()[0] if why else ""
        self.outcomes.append(Outcome(self.drawn.number, command, place, verdict, why))

    def _compare(self, command: str, reading: Reading, said: Said) -> None:
        for schema in reading.schema:
            spot = self._spot(schema)
            if spot is None:
                self._add(command, schema.key, UNKNOWN, "inside a module of torch")
                continue
            wrong, of_shape = self._wrong(spot, schema, reading.rows[schema.key])
            verdict = EQUAL
            if wrong:
                verdict = WARNED if self._is_named(said) and not of_shape else DIFFERENT
                wrong = f"{wrong}; axes {schema.axes!r}, truly {_words(spot)!r}, {schema.module}"
            self._add(command, schema.key, verdict, wrong)

    def _is_named(self, said: Said) -> bool:
        """Return whether a line names just what this model does to its rows."""
        return any(NAMED_BY[fact] in said.text for fact in self.drawn.facts)

    def _spot(self, schema: SiteSchema) -> Spot | None:
        site = schema.site
        for spot in self.drawn.spots:
            same = (spot.path, spot.port) == (site.path, site.port)
            if same and spot.call == (site.call or 0) and site.key in (spot.key, None):
                return spot if site.key == spot.key or spot.key != "1" else None
        return None

    def _wrong(self, spot: Spot, schema: SiteSchema, rows: Rows) -> tuple[str, bool]:
        """Return how rows differ from all that they could rightly be, and whether in shape too.

        Empty if they do not. Neither chance nor another order changes a shape.
        """
        tolerance, widths = self.truth.tolerance(spot), {x.shape[1] for x in rows}
        if widths != {schema.dim}:
            return f"rows of width {widths}, said to be {schema.dim}", True
        gaps = []
        for expected in self.truth.rows(spot, schema.reducer.name):
            gap = _gap(rows, expected)
            if gap <= tolerance:
                return "", False
            gaps.append(gap)
        off = min(gaps, default=np.inf)
        return f"off by {off:.3g} where {tolerance:.1g} is rounding", np.isinf(off)

    def _compare_sites(self, command: str, reading: Reading, said: Said) -> None:
        """Ask whether each block, or each leaf where leaves are read, is read or spoken of."""
        read, leaves = {schema.site.path for schema in reading.schema}, self._leaves()
        if not self.drawn.blocks and not read <= leaves:
            return  # other parts are taken for blocks, which is a choice that the schema states
        wanted = set(self.drawn.blocks) or leaves
        told = [entry.site.partition(":")[0].partition("@")[0] for entry in reading.stream.left_out]
        text = "\n".join((said.text, *told))
        gone = sorted(p for p in wanted - read if not _is_named_in(p, text))
        if gone:
            self._add(command, gone[0], DIFFERENT, f"left out without a word: {', '.join(gone)}")

    def _leaves(self) -> set[str]:
        model = self.module.model()
        found = set()
        for spot in self.drawn.spots:
            part = model.get_submodule(spot.path)
            silent = type(part).__name__ in ("Dropout", "Identity")
            if spot.path and not part._modules and not silent:
                found.add(spot.path)
        return found

    def _compare_scores(self, command: str, reading: Reading, scores: Scores, said: Said) -> None:
        for (method, site), found in scores.of.items():
            truth = self._true_scores(method, site, reading)
            if truth is None:
                self._add(command, f"{method} {site}", UNKNOWN, "not finite, or no variance")
                continue
            expected, tolerance = truth
            verdict, wrong = EQUAL, ""
            if not _close(found, expected, tolerance):
                verdict = WARNED if self._is_named(said) else DIFFERENT
                off = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
                wrong = f"off by {off:.3g} where {tolerance:.1g} is rounding"
            self._add(f"{command}, {method}", site, verdict, wrong)

    def _true_scores(
        self, method: str, site: str, reading: Reading
    ) -> tuple[np.ndarray, float] | None:
        """Return scores by brute force, and by how much rounding of the rows moves them."""
        if method == "msp":
            spot = self.drawn.logits
            if spot is None:
                return None
            rows, of = np.stack(self.truth.values[spot]), plain.msp
        else:
            schema = next(s for s in reading.schema if s.key == site)
            spot = self._spot(schema)
            every = () if spot is None else self.truth.rows(spot, schema.reducer.name)
            alike = min(every, key=lambda r: _gap(reading.rows[site], r), default=None)
            if spot is None or alike is None or _gap(reading.rows[site], alike) == np.inf:
                return None
            rows, of = np.concatenate(alike), {"knn": plain.knn}.get(method, plain.mahalanobis)
        varies = np.ptp(rows, axis=0) > self.truth.tolerance(spot)
        if not np.isfinite(rows).all() or not varies.any():
            return None
        expected, moved = of(rows), []
        for _ in range(5):
            step = self.truth.tolerance(spot) * self.rng.standard_normal(rows.shape)
            moved.append(np.abs(of(rows + step) - expected).max())
        tolerance = 1e-4 * float(np.abs(expected).max()) + 5 * float(max(moved))
        return None if tolerance > 0.5 * float(np.ptp(expected)) else (expected, tolerance)


def _words(spot: Spot) -> str:
    return " ".join(axis.word for axis in spot.axes) + (" (own)" if spot.own else "")


def _gap(rows: Sequence[np.ndarray], expected: Rows) -> float:
    """Return the largest difference; infinite where shapes differ, the largest number for a NaN."""
    if [x.shape for x in rows] != [x.shape for x in expected]:
        return float("inf")
    worst = 0.0
    for x, y in zip(rows, expected, strict=True):
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return sys.float_info.max
        kept = np.isfinite(y)
        worst = max(worst, float(np.abs(x[kept] - y[kept]).max(initial=0.0)))
    return worst


def _close(x: np.ndarray, y: np.ndarray, tolerance: float) -> bool:
    return x.shape == y.shape and bool(np.abs(x - y).max(initial=0.0) <= tolerance)


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.array_equal(x, y, equal_nan=True)


def _is_named_in(path: str, text: str) -> bool:
    return any(path in line for line in text.splitlines())
