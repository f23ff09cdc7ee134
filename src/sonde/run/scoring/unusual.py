"""Find the most outlying examples in a table of scores, comparing sites with each other."""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError
from sonde.run.scoring.tables import beyond, keys_of, part_of, scores_of


def most_unusual(table: pa.Table, n: int) -> dict[str, list[dict[str, Any]]]:
    """Return each detector's ``n`` most outlying examples, each at its most extreme site.

    Lines are compared by p-value, then by their score less the median of the site's scores in the
    table, divided by the distance from the median to the 90 % quantile: sites have no common scale
    of their own. Lines without a p-value come last.

    Parameters
    ----------
    table : pyarrow.Table
        As ``sonde.score`` returns it; a score that is null counts as infinite.
    n : int

    Returns
    -------
    dict of str to list of dict
        For each instrument the lines, one for each id.

    Raises
    ------
    InputError
        If ``n`` is negative.
    """
    if n < 0:
        raise InputError(f"most_unusual: expected a number of at least 0, got {n}.")
    lines_of: dict[str, list[dict[str, Any]]] = {}
    for instrument in dict.fromkeys(key[0] for key in keys_of(table)):
        best: dict[str, tuple[tuple[float, float], dict[str, Any]]] = {}
        for key in keys_of(table):
            if key[0] == instrument:
                _take(best, part_of(table, key), n)
        order = sorted(best.values(), key=lambda pair: pair[0])[:n]
        lines_of[instrument] = [line for _, line in order]
    return lines_of


def _take(best: dict[str, Any], part: pa.Table, n: int) -> None:
    """Keep the lines of one site that may be among the first ``n``."""
    scores, ids = scores_of(part), part["id"].to_pylist()
    p = np.array([math.inf if v is None else v for v in part["p"].to_pylist()])
    far = beyond(scores)
    taken: set[str] = set()
    for i in np.lexsort((-far, p)).tolist():
        if len(taken) == n:
            return
        if ids[i] in taken:
            continue
        taken.add(ids[i])
        rank = (float(p[i]), -float(far[i]))
        if ids[i] not in best or rank < best[ids[i]][0]:
            line = part.slice(i, 1).to_pylist()[0]
            best[ids[i]] = (rank, {**line, "score": float(scores[i])})
