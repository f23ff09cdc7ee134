"""The estimate of a job, as text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sonde.core.wording import gib, plural, significant

MINUTE, HOUR = 60, 3600
MOST_PARTS = 5


@dataclass(frozen=True)
class Cheaper:
    """A change that makes a job cheaper.

    Parameters
    ----------
    change : str
        What to do, in words.
    seconds : float
        What the job takes then.
    """

    change: str
    seconds: float


@dataclass(frozen=True)
class JobEstimate:
    """What a job will cost, extrapolated from a few examples.

    Parameters
    ----------
    job : str
        ``read``, ``fit``, ``score`` or ``scan``.
    n_examples, n_tried : int
        Examples of the whole job, and of the largest trial.
    n_rows : int
        Rows of states over all sites.
    n_forwards : int
        Forward passes that read the data; trials of changes that a scan adds are not counted.
    seconds : float
        Time on this machine, in one process.
    low_seconds, high_seconds : float
        Interval of the time.
    worker_seconds : mapping of int to float
        Time with several workers, each as fast as this process.
    memory_bytes : int
        States and rows in memory.
    disk_bytes : int
        Peak on disk.
    peak_bytes : int
        Peak memory of this process, with the model.
    parts : mapping of str to float
        Seconds of the forward passes and of each method, largest first.
    cheaper : sequence of Cheaper
        Changes that would make the job cheaper.
    """

    job: str
    n_examples: int
    n_tried: int
    n_rows: int
    n_forwards: int
    seconds: float
    low_seconds: float
    high_seconds: float
    worker_seconds: Mapping[int, float]
    memory_bytes: int
    disk_bytes: int
    peak_bytes: int
    parts: Mapping[str, float]
    cheaper: Sequence[Cheaper] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        workers = {str(n): seconds for n, seconds in self.worker_seconds.items()}
        return {"schema": "sonde-estimate/1", **asdict(self), "worker_seconds": workers}

    def __str__(self) -> str:
        lines = [
            ("data", f"{plural(self.n_examples, 'example')}, {plural(self.n_rows, 'row')}"),
            ("forward passes", f"{self.n_forwards:,}"),
            ("time here", f"{duration(self.seconds)} ({self._interval})"),
            *(
                (f"{n} workers", f"{duration(s)} and their start")
                for n, s in self.worker_seconds.items()
            ),
            ("states in memory", gib(self.memory_bytes)),
            ("peak on disk", gib(self.disk_bytes)),
            ("peak memory", gib(self.peak_bytes)),
            *(("of the time", text) for text in self._shares),
            *(("cheaper", f"{c.change}: {duration(c.seconds)}") for c in self.cheaper),
            ("tried on", plural(self.n_tried, "example")),
        ]
        return "\n".join(f"{name:<17} {text}" for name, text in lines)

    @property
    def _interval(self) -> str:
        return f"between {duration(self.low_seconds)} and {duration(self.high_seconds)}"

    @property
    def _shares(self) -> list[str]:
        total = sum(self.parts.values()) or 1.0
        ordered = sorted(self.parts.items(), key=lambda part: -part[1])[:MOST_PARTS]
        return [f"{seconds / total:.0%} {name}" for name, seconds in ordered]


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours.

    Examples
    --------
    >>> duration(3.21), duration(600), duration(40 * 3600)
    ('3.2 s', '10 min', '40 h')
    """
    if seconds < 2 * MINUTE:
        return f"{significant(seconds, 2)} s"
    if seconds < 2 * HOUR:
        return f"{significant(seconds / MINUTE, 2)} min"
    return f"{significant(seconds / HOUR, 2)} h"
