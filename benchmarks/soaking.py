"""A million rows through everything that a scan of two data sets fits, in memory that stays flat.

The rows are drawn as they are read, so what grows would be sonde's. Both the statistics of the
checks and the detectors that compare with OTHER run in the one pass over DATA.
"""

import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, overload

import torch

from benchmarks.child import resident, run_child
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.batch import Batch, SiteSchema
from sonde.core.stream import Stream
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings

PARTS, CLASSES = 10, 10
MEMORY_BUDGET = 1.05
UNIT_SIZE = 1024


class Keys(Sequence[bytes]):
    """Keys that are made when they are asked for."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not 0 <= index < self._n:
            raise IndexError(index)
        return struct.pack("<qq", self._seed, index)


class Drawn(Stream):
    """Labelled rows of two sites with logits, drawn unit by unit; notes the time and the memory.

    Parameters
    ----------
    n : int
    width : int
    seed : int
    shift : float
        Added to every value.

    Attributes
    ----------
    sweeps : list of lists of (seconds, MiB)
        For each time that all rows were read: when each tenth was begun and the last one ended,
        and what the process held.
    """

    def __init__(self, n: int, width: int, seed: int, shift: float = 0.0) -> None:
        self._n, self._width, self._row_seed, self._shift = n, width, seed, shift
        self._mix = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width
        self.sweeps: list[list[tuple[float, float]]] = []

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The two sites."""
        return self._drawn(0, 2).schema

    @property
    def group_keys(self) -> Sequence[bytes]:
        """Each row is a group of its own."""
        return Keys(self._n, self._row_seed)

    @property
    def grouped(self) -> bool:
        """Whether groups were given: no."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return what the rows are drawn from."""
        return {"drawn": [self._n, self._width, self._row_seed, self._shift]}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the rows of a unit."""
        if start == 0 and stop > 2:
            self.sweeps.append([])
        if self.sweeps and start * PARTS >= len(self.sweeps[-1]) * self._n:
            self._note()
        for batch in self._drawn(start, stop):
            yield replace(batch, order=batch.order + start)
        if stop == self._n:
            self._note()

    def _note(self) -> None:
        self.sweeps[-1].append((time.monotonic(), resident("VmRSS")))

    def _drawn(self, start: int, stop: int) -> Stream:
        generator = torch.Generator().manual_seed((self._row_seed << 40) + start)
        n = stop - start
        label = torch.randint(CLASSES, (n,), generator=generator)
        first = torch.randn(n, self._width, generator=generator) + self._shift
        first[torch.arange(n), label] += 3.0
        keys = self.group_keys[start:stop]
        return Stream.of(
            {"first": first, "second": first + torch.tanh(first @ self._mix)},
            label=label,
            logits=3.0 * first[:, :CLASSES],
            ids=[key.hex() for key in keys],
            keys=keys,
        )


def soaked(n: int, n_other: int, width: int) -> dict[str, Any]:
    """Scan ``n`` rows against others; return rows per second and MiB of ten equal parts."""
    data, other = Drawn(n, width, seed=2), Drawn(n_other, width, seed=3, shift=0.1)
    settings = ScanSettings(progress=False, unit_size=UNIT_SIZE)
    scanned = scan_stream(data, "drawn", other=other, other_name="shifted", settings=settings)
    _, points, *_ = data.sweeps  # the first sweep lists the rows, the second one is the pass
    seconds = [end[0] - begin[0] for begin, end in pairwise(points)]
    return {
        "rates": [n / PARTS / s for s in seconds],
        "memory": [point[1] for point in points[1:]],
        "n_states": len(scanned.gathered.outcome.states),
    }


def soak_rows(size: Size) -> list[Row]:
    """Memory and rate of the last tenth of a long pass against the second."""
    n, n_other, width = size.pick((1_000_000, 10_000, 64), (20_000, 1_000, 16))
    found = run_child("benchmarks.soaking:soaked", n=n, n_other=n_other, width=width)
    memory, rates = found["memory"], found["rates"]
    what = f"{n:,} rows of two sites x {width} through {found['n_states']} statistics"
    return [
        Row(
            "soak",
            f"{what}: memory after the last tenth against the second",
            memory[-1] / memory[1],
            budget=MEMORY_BUDGET,
            note="MiB " + " ".join(f"{m:.0f}" for m in memory),
        ),
        Row(
            "soak",
            f"{what}: time of the last tenth against the second",
            rates[1] / rates[-1],
            note="rows/s " + " ".join(f"{r:,.0f}" for r in rates),
        ),
        Row(
            "soak",
            f"{what}: time of a row, median of ten parts",
            1e6 / statistics.median(rates),
            unit="us",
        ),
    ]
