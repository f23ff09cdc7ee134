"""Memory of a calibration on many scores, against one on a tenth of them."""

import numpy as np
import torch

from benchmarks.child import added_peak, run_child
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.hashing import splitmix64
from sonde.stats import HeldScores

FLAT = 1.05
CHUNK = 50_000


def calibration_rows(size: Size) -> list[Row]:
    """Peak memory of ten million scores against a million."""
    many = size.pick(10_000_000, 200_000)
    target = "benchmarks.calibrating:peak_of_scores"
    found = {n: run_child(target, n=n) for n in (many, many // 10)}
    most, few = found[many], found[many // 10]
    note = f"adds {most['added']:.1f} and {few['added']:.1f} MiB; {most['seconds']:.1f} s"
    what = f"calibration, memory of {many:,} against {many // 10:,} scores"
    ratio = most["peak"] / few["peak"]
    return [Row("calibrate", what, ratio, budget=FLAT, note=f"{note}, threshold {most['limit']:g}")]


def peak_of_scores(n: int) -> dict[str, float]:
    """Return what ``n`` scores add to the memory of this process, and its peak."""
    import resource
    import time

    statistic = HeldScores()
    state = None
    began = time.process_time()

    def work() -> None:
        nonlocal state
        for start in range(0, n, CHUNK):
            place = np.arange(start, min(start + CHUNK, n), dtype=np.uint64)
            draw = torch.as_tensor(splitmix64(place).view(np.int64))
            scores = torch.as_tensor((place % np.uint64(1_000_003)).astype(np.float64))
            new = statistic.observe(scores[:, None], torch.zeros_like(draw), draw)
            state = new if state is None else statistic.merge(state, new)

    added = added_peak(work)
    assert state is not None  # there is at least one score
    return {
        "added": added,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.process_time() - began,
        "limit": state.calibration().threshold(1e-5 if n > 1_000_000 else 1e-3),
    }
