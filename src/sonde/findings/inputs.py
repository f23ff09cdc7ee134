"""The inputs of the rows that a report names, where the user lets it hold them."""

from typing import Any, Final

from sonde.core.stream import Stream
from sonde.data.pieces import pieces_of
from sonde.data.pixels import as_bytes, as_png
from sonde.findings.evidence import DataEvidence
from sonde.run.exhibit import largest, pixels_of
from sonde.tap import LiveStream

MOST_SIGNS: Final = 400
SIDE: Final = 48
LISTS: Final = ("mislabelled", "far", "duplicates", "near_duplicates")


def show_inputs(
    report: dict[str, Any],
    mine: tuple[Stream, DataEvidence],
    other: tuple[Stream, DataEvidence] | None,
) -> None:
    """Add ``input`` to every row that a report lists.

    Parameters
    ----------
    report : dict
        A document of ``sonde-scan/1``; changed in place.
    mine, other : (Stream, DataEvidence)
        Where the rows of DATA and of OTHER lie.
    """
    if report["rows"] is not None:
        _fill([row for name in LISTS for row in report["rows"][name]], *mine)
    if report["versus"] is not None and other is not None:
        _fill(report["versus"]["rows"], *other)


def _fill(rows: list[dict[str, Any]], stream: Stream, data: DataEvidence) -> None:
    if not rows:
        return
    places: dict[str, int] = {}
    for index, name in enumerate(data.ids):
        places.setdefault(str(name), index)
    for row in rows:
        index = places.get(str(row["id"] if "id" in row else row["ids"][0]))
        row["input"] = None if index is None else input_of(stream, index)


def input_of(stream: Stream, index: int) -> str | None:
    """Return a text, a small picture as ``data:`` address, or the largest units of a plain row.

    Parameters
    ----------
    stream : Stream
    index : int
        In the planned order.
    """
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
    text = "".join(pieces_of(raw, stream.model.processor))
    return (text if len(text) <= MOST_SIGNS else f"{text[:MOST_SIGNS]}...") or None
