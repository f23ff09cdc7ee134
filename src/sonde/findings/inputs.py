"""The inputs of the rows that a report names, where the user lets it hold them."""

from typing import Any, Final

from sonde.core.stream import Stream
from sonde.data.pieces import pieces_of
from sonde.data.pixels import as_bytes, as_png
from sonde.findings._shared import EXAMPLES
from sonde.run.scoring.exhibit import in_whole_batches, largest, pixels_of
from sonde.tap import LiveStream

MOST_SIGNS: Final = 400
SIDE: Final = 48
LISTS: Final = ("mislabelled", "far", "duplicates", "near_duplicates", "weak_groups")


def show_inputs(report: dict[str, Any], mine: Stream, other: Stream | None) -> None:
    """Add ``input`` to every row that a report lists.

    Parameters
    ----------
    report : dict
        A document of ``sonde-scan/1`` whose rows say their examples; changed in place.
    mine, other : Stream
        Where the rows of DATA and of OTHER lie.
    """
    for rows, stream in ((own_rows(report), mine), (other_rows(report), other)):
        for row in rows:
            row["input"] = None
            if stream is not None and row[EXAMPLES]:
                row["input"] = input_of(stream, row[EXAMPLES][0])


def own_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of DATA that the tables of a report list."""
    return [row for name in LISTS for row in (report["rows"] or {}).get(name, ())]


def other_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of OTHER that the table of a report lists."""
    return list((report["versus"] or {}).get("rows", ()))


def input_of(stream: Stream, index: int) -> str | None:
    """Return a text, a small picture as ``data:`` address, or the largest units of a plain row.

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
