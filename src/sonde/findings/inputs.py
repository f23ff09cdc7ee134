"""Inputs of the rows that a report names, if the user allows the report to hold them."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sonde.core.stream import Stream
from sonde.data.pieces import pieces_of
from sonde.data.pixels import as_bytes, as_png
from sonde.findings.answered import SHOWN, wrong_pairs
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.evidence.shared_rows import EXAMPLES
from sonde.run.scoring.exhibit import in_whole_batches, largest, pixels_of
from sonde.tap import LiveStream

MOST_SIGNS: Final = 400
SIDE: Final = 48
COLUMNS: Final = 4
LISTS: Final = ("mislabelled", "far", "duplicates", "near_duplicates", "weak_groups", "answers")


def show_inputs(
    report: dict[str, Any], mine: Stream, other: Stream | None, data: DataEvidence
) -> None:
    """Add ``input`` to the listed rows; in the table of answers only to each pair's worst row.

    Parameters
    ----------
    report : dict
        A document of ``sonde-scan/1`` whose rows say their examples; changed in place.
    mine, other : Stream
        Where the rows of DATA and of OTHER lie.
    data : DataEvidence
        What the listing knows of DATA: a row of a table shows its unusual columns.
    """
    answers = (report["rows"] or {}).get("answers", [])
    chosen = [row for some in wrong_pairs(answers) for row in some[:SHOWN]]
    unshown = {id(row) for row in answers} - {id(row) for row in chosen}
    shown = unusual_columns(data, [row[EXAMPLES][0] for row in answers])
    for rows, stream in ((own_rows(report), mine), (other_rows(report), other)):
        for row in rows:
            if id(row) in unshown:
                continue
            row["input"] = None
            if stream is not None and row[EXAMPLES]:
                row["input"] = input_of(stream, row[EXAMPLES][0])
    for row in chosen:
        row["input"] = shown.get(row[EXAMPLES][0], row["input"])


def unusual_columns(data: DataEvidence, examples: Sequence[int]) -> dict[int, str]:
    """Return each row's inputs that are furthest from their medians, most unusual first.

    Distances are in robust standard deviations over these rows. Empty if no input is a number.
    """
    x: list[tuple[str, Tensor]] = []
    for some in (examples[:1], examples):  # pictures are not read again to find no number
        given = {} if data.key_columns is None or not some else data.key_columns(some)
        x = [(name, _numbers(given[name])) for name in data.inputs if name in given]
        x = [(name, column) for name, column in x if bool(column.isfinite().any())]
        if not x:
            return {}
    values = torch.stack([column for _, column in x], 1)
    away = values - values.nanmedian(0).values
    spread = 1.4826 * away.abs().nanmedian(0).values
    spread = torch.where(spread > 0, spread, away.square().nanmean(0).sqrt())
    z = (away / spread).nan_to_num(0.0, 0.0, 0.0)
    out = {}
    for i, example in enumerate(examples):
        top = z[i].abs().topk(min(COLUMNS, len(x))).indices.tolist()
        out[example] = "\n".join(f"{x[j][0]} {values[i, j]:.4g} (z {z[i, j]:+.1f})" for j in top)
    return out


def _numbers(values: Sequence[Any]) -> Tensor:
    """Return a column as numbers; entries that are not numbers become NaN."""
    return torch.tensor([_number(v) for v in values], dtype=torch.float64)


def _number(value: Any) -> float:
    """Return a cell as a number, or NaN if it is not a number."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan


def own_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of DATA that the tables of a report list."""
    rows = report["rows"] or {}
    suspects = (rows.get("suspects") or {}).get("rows", ())
    return [*(row for name in LISTS for row in rows.get(name, ())), *suspects]


def other_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of OTHER that the table of a report lists."""
    return list((report["versus"] or {}).get("rows", ()))


def input_of(stream: Stream, index: int) -> str | None:
    """Return a text, a small image as a ``data:`` address, or a vector's largest units.

    Parameters
    ----------
    stream : Stream
    index : int
        In the planned order.
    """
    stream = in_whole_batches(stream)
    if not isinstance(stream, LiveStream):
        batch = next(iter(stream.batches(index, index + 1)), None)
        rows = next(iter(batch.rows.values()), None) if batch is not None else None
        if rows is None or not len(rows):
            return None
        return ", ".join(f"{unit}: {value:.4g}" for unit, value in largest(rows[0]))
    raw = next(iter(stream.inputs.batches(index, index + 1)), None)
    if raw is None:
        return None
    if (pixels := pixels_of(raw)) is not None:
        lines, columns = pixels.shape[-2:]
        scale = SIDE / max(lines, columns)
        size = max(1, round(lines * scale)), max(1, round(columns * scale))
        return as_png(as_bytes(pixels, size))
    at = raw.order.tolist().index(index)
    text = "".join(pieces_of(raw, stream.model.processor, example=at))
    return (text if len(text) <= MOST_SIGNS else f"{text[:MOST_SIGNS]}...") or None
