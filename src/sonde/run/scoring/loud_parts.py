"""Explain a high score: the most outlying layers, units, and tokens or patches of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.calibration import Calibration
from sonde.core.finite import finite_entries
from sonde.core.result import Scorer
from sonde.run.instruments.entries import Key
from sonde.stats import CalibratedScorer, ClassCalibration, SampledCalibration

COLUMNS = [
    ("layers", pa.list_(pa.string())),
    ("layer_p", pa.list_(pa.float64())),
    ("units", pa.list_(pa.int64())),
    ("unit_shares", pa.list_(pa.float64())),
    ("positions", pa.list_(pa.int64())),
    ("position_scores", pa.list_(pa.float64())),
]


@dataclass(frozen=True)
class RecordLine:
    """A record of the table as text, before layers are compared.

    ``where`` names the row: id, occurrence and position. If an example's rows make one score, the
    number of the text's piece replaces the position.
    """

    where: tuple[str | int, ...]
    score: float
    p: float | None


def units_of(
    scorer: Scorer, columns: Mapping[str, Any], row: Int[Tensor, "record"], n: int
) -> dict[str, list[Any]]:
    """Return the ``n`` units with the largest contributions to some rows' scores, with fractions.

    None if the method cannot say which units made a score. For a row that is not finite, the units
    that are not finite, without shares.
    """
    nothing = {"units": [None] * len(row), "unit_shares": [None] * len(row)}
    x = columns.get("x")
    if not len(row) or not isinstance(x, Tensor):
        return nothing
    chosen = {name: column[row.to(column.device)] for name, column in columns.items()}
    strange = ~finite_entries(chosen["x"]).cpu()
    with torch.no_grad():
        parts = scorer.contributions(*chosen.values())
    if parts is None:
        return nothing
    parts = parts.double().cpu()
    most = parts.topk(min(n, parts.shape[1]), dim=1)
    total = parts.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    units, shares = most.indices.tolist(), (most.values / total).tolist()
    for i in torch.nonzero(strange.any(dim=1)).flatten().tolist():
        units[i], shares[i] = torch.nonzero(strange[i]).flatten()[:n].tolist(), None
    return {"units": units, "unit_shares": shares}


def positions_of(
    scores: Float[Tensor, "row"],
    example: Int[Tensor, "_row"],
    position: Int[Tensor, "_row"],
    row: Int[Tensor, "record"],
    n: int,
) -> dict[str, list[Any]]:
    """Return each record's ``n`` most outlying positions in its example, with their scores.

    Nothing for an example that has one row alone.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(example[order], stable=True)]
    count = torch.bincount(example)
    start = count.cumsum(0) - count
    columns: dict[str, list[Any]] = {"positions": [], "position_scores": []}
    for k in example[row].tolist():
        size, first = int(count[k]), int(start[k])
        best = order[first : first + min(n, size)]
        columns["positions"].append(position[best].tolist() if size > 1 else None)
        columns["position_scores"].append(scores[best].tolist() if size > 1 else None)
    return columns


def layers_of(
    lines: Mapping[Key, Sequence[RecordLine]], scorers: Mapping[Key, Scorer], n: int
) -> dict[Key, dict[str, list[Any]]]:
    """Return each record's ``n`` sites where its detector finds the row most outlying.

    Sites are compared by their p-values; where these are equal, by how far the score lies beyond
    the scores that calibrated the site. Nothing without calibration: scores of two sites have no
    common scale.
    """
    ranked: dict[tuple[str, tuple[str | int, ...]], list[tuple[float, float, str]]] = {}
    for name, several in lines.items():
        scale = _scale(scorers[name])
        for line in several:
            if line.p is not None and scale is not None:
                beyond = (line.score - scale[0]) / scale[1]
                place = ranked.setdefault((name[0], line.where), [])
                place.append((line.p, -beyond, name[1]))
    best = {place: sorted(sites)[:n] for place, sites in ranked.items()}
    columns_of: dict[Key, dict[str, list[Any]]] = {}
    for name, several in lines.items():
        best_of = [best.get((name[0], line.where)) for line in several]
        columns_of[name] = {
            "layers": [None if b is None else [site for *_, site in b] for b in best_of],
            "layer_p": [None if b is None else [p for p, *_ in b] for b in best_of],
        }
    return columns_of


def _scale(scorer: Scorer) -> tuple[float, float] | None:
    """Return the median of the held-out scores, and how far their 90 % quantile is above it."""
    if not isinstance(scorer, CalibratedScorer):
        return None
    calibration = scorer.calibration
    calibration = calibration.whole if isinstance(calibration, ClassCalibration) else calibration
    values = _held(calibration)
    middle, high = values.quantile(0.5).item(), values.quantile(0.9).item()
    return middle, max(high - middle, torch.finfo(torch.float64).tiny)


def _held(calibration: Calibration | SampledCalibration) -> Float[Tensor, "n"]:
    """Return a finite sample of the held-out scores."""
    if isinstance(calibration, Calibration) or len(calibration.scores) == 0:
        values = calibration.scores if isinstance(calibration, Calibration) else calibration.tail
    elif len(calibration.tail) * 10 < calibration.n:
        values = calibration.scores
    else:
        values = torch.cat((calibration.scores, calibration.tail))
    finite = values[torch.isfinite(values)]
    return finite if len(finite) else torch.zeros(1, dtype=torch.float64)
