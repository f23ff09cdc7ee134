"""``sonde.estimate``: what a job will cost, from runs of the job on a few examples."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.plan import UNIT_SIZE
from sonde.core.reduction import AUTO
from sonde.core.stream import Stream
from sonde.findings.estimating import estimate_scan
from sonde.findings.settings import ScanSettings
from sonde.run.estimating.job_estimate import JobEstimate
from sonde.run.estimating.jobs import estimate_fit, estimate_reading, estimate_scoring
from sonde.run.estimating.trials import Clock
from sonde.run.fitting.fit import DEFAULT_HELD
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.instruments.words import Asked
from sonde.run.reading.read import read


def estimate(
    job: str,
    stream: Stream | str | Path,
    *,
    methods: Asked | Iterable[Asked] = (),
    fitted: Fitted | str | Path | None = None,
    calibrate: float | int = DEFAULT_HELD,
    reduction: str = AUTO,
    explain: int = 0,
    unit_size: int = UNIT_SIZE,
    threads: int | None = None,
    other: Stream | None = None,
    settings: ScanSettings | None = None,
    examples: int | None = None,
    clock: Clock = time.perf_counter,
) -> JobEstimate:
    """Estimate the time, memory and disk space of a job on all rows of a stream.

    The job runs on samples of doubling size, of at most an eighth of the data, until a sample takes
    two seconds more than the smallest. What it took is extrapolated along a line. Results, and the
    checks of a scan, are taken once and grow with the rows that their states hold: they are tried
    with states of their full size, on at most half of the data, if that takes five seconds or less.

    Parameters
    ----------
    job : {"read", "fit", "score", "scan"}
        What will be done with the stream. "read" writes its rows to disk.
    stream : Stream or path
        What ``sonde.read`` returns for the model and all of the data; or the folder of a store.
    methods : Instrument, Rewrite, str or iterable of these, optional
        Methods to fit.
    fitted : Fitted or path, optional
        Detectors that score.
    calibrate : float, default=0.2
        Share of the groups that a fit holds out.
    reduction : str, default="auto"
        How the rows of an example become one score, as in ``sonde.fit`` and ``sonde.score``.
    explain : int, default=0
        How many unusual layers and units a score names.
    unit_size : int, default=256
        Examples in a unit.
    threads : int or None, default=None
        Threads to compute in.
    other : Stream or None, default=None
        Second data set of a scan.
    settings : ScanSettings, optional
        How a scan is run.
    examples : int or None, default=None
        Examples of the largest sample; None takes more until they run for two seconds. States of
        full size may take more.
    clock : callable, default=time.perf_counter
        Clock that times the samples; ``time.process_time`` leaves out other work on the machine.

    Returns
    -------
    JobEstimate

    Raises
    ------
    InputError
        If the job is unknown, or its methods or detectors are missing.

    Examples
    --------
    >>> import torch
    >>> rows = Stream.of(torch.arange(8000.0).reshape(2000, 4) % 7)
    >>> found = estimate("fit", rows, methods="covariance")
    >>> found.n_rows, found.low_seconds <= found.seconds <= found.high_seconds
    (2000, True)
    """
    rows = stream if isinstance(stream, Stream) else read(stream)
    how: dict[str, Any] = {"examples": examples, "clock": clock}
    if job == "read":
        return estimate_reading(rows, unit_size=unit_size, **how)
    if job == "fit":
        how |= {"reduction": reduction, "unit_size": unit_size, "threads": threads}
        return estimate_fit(methods, rows, calibrate=calibrate, **how)
    if job == "score":
        if fitted is None:
            raise InputError("estimate: expected fitted detectors for job='score'. Pass fitted=.")
        how |= {"reduction": reduction, "explain": explain}
        return estimate_scoring(as_fitted(fitted, "estimate"), rows, **how)
    if job == "scan":
        return estimate_scan(rows, other=other, settings=settings, **how)
    raise InputError(f"estimate: expected job read, fit, score or scan, got {job!r}.")
