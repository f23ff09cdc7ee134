"""How many neighbouring rows of a file go together, as in a recording: rows per independent block.

Windows of one recording, or rows of one person, are alike. A test that takes them for independent
rows finds a change wherever one recording ends.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows

SURE: Final = 3.5
"""Standard errors from which the correlation of neighbours is not chance."""
NIL: Final = 2.0
"""Standard errors below which a correlation is taken for 0."""
WIDTH, KEPT = 64, 3


def rows_per_block(
    x: Float[np.ndarray, "row series"],
    cuts: Sequence[int] = (),
    classes: Int[np.ndarray, "row"] | None = None,
) -> int:
    """Return the length of blocks whose means hardly depend on one another; 1 if rows do not.

    Twice the integrated autocorrelation time of the series that is slowest, after the means between
    the cuts (with classes, of each class between the cuts) are removed: a change is no dependence.

    Examples
    --------
    >>> draw = np.random.default_rng(0).normal(size=(600, 1))
    >>> rows_per_block(draw), rows_per_block(np.repeat(draw[:60], 10, axis=0)) >= 10
    (1, True)
    """
    n = len(x)
    edges = [0, *sorted({c for c in cuts if 0 < c < n}), n]
    left = x.astype(float).copy()
    cell = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    cell = cell if classes is None else cell * (int(classes.max()) + 2) + classes + 1
    for one in np.unique(cell):
        left[cell == one] -= left[cell == one].mean(0)
    return max((_of_series(series) for series in left.T), default=1)


def _of_series(x: Float[np.ndarray, "row"]) -> int:
    n, power = len(x), float(np.square(x).sum())
    if power <= 1e-12 * n:
        return 1
    wave = np.fft.rfft(x, 2 * n)
    related = np.fft.irfft(wave * wave.conj())[: n // 2] / power
    error = 1 / math.sqrt(n)
    if len(related) < 2 or related[1] < SURE * error:
        return 1
    ends = np.flatnonzero(related < NIL * error)
    last = int(ends[0]) if len(ends) else len(related)
    return math.ceil(2 * (1 + 2 * float(related[1:last].sum())))


def state_series(
    evidence: Evidence, order: Int[np.ndarray, "row"]
) -> Float[np.ndarray, "row series"]:
    """Return main directions of the states at the first and the last site, in file order."""
    shared, series = shared_rows(evidence), list[Float[np.ndarray, "row kept"]]()
    for i in sorted({0, len(evidence.sites) - 1}):
        x = shared.x(i).numpy()[order]
        x = x - x.mean(0)
        x = x / np.maximum(x.std(0), 1e-12)
        if x.shape[1] > WIDTH:
            draw = torch.Generator().manual_seed(evidence.data.seed)
            x = x @ torch.randn(x.shape[1], WIDTH, generator=draw, dtype=torch.float64).numpy()
        left, size, _ = np.linalg.svd(x, full_matrices=False)
        kept = np.flatnonzero(size[:KEPT] > 1e-9 * max(float(size[0]), 1e-300))
        series.append(left[:, kept])
    return np.concatenate(series, 1)
