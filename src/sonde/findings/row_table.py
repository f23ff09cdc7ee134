"""The inputs that findings count, as a table: one line for each input of each finding."""

from itertools import chain, repeat

import pyarrow as pa

from sonde.core.stream import Stream
from sonde.findings.evidence import DataEvidence
from sonde.findings.scan import Scanned
from sonde.run.reading.row_places import places_of
from sonde.run.scoring.exhibit import hashed_id

SCHEMA = pa.schema([
    ("code", pa.string()),
    ("level", pa.string()),
    ("data", pa.string()),
    ("id", pa.string()),
    ("row", pa.int64()),
    ("place", pa.string()),
    ("figure", pa.float64()),
    ("partner", pa.string()),
    ("partner_row", pa.int64()),
])  # fmt: skip


def row_table(scanned: Scanned) -> pa.Table:
    """Return every input that a finding counts, most telling first.

    ``data`` is the data set as typed, ``row`` counts its items from 0 and is null where they are
    not numbered, ``place`` is a file, a line or a row. ``figure`` is the number by which the check
    counted this input, e.g. its score or how many copies there are; ``partner`` and
    ``partner_row`` are the id and the number of the input of DATA that it is like.
    """
    evidence, hashed = scanned.evidence, scanned.settings.hash_ids
    lines = []
    for finding in (check.finding for check in scanned.checks):
        if finding is None:
            continue
        data = evidence.versus.other_data if finding.of_other else evidence.data
        stream = scanned.other_stream if finding.of_other else scanned.stream
        place = places_of(stream, hashed)
        figures, partners = (
            chain(finding.figures, repeat(None)),
            chain(finding.partners, repeat(None)),
        )
        for example, counted, partner in zip(finding.examples, figures, partners, strict=False):
            lines.append({
                "code": finding.code,
                "level": finding.level,
                "data": data.name,
                "id": _id(data, example, hashed),
                "row": _row(stream, example),
                "place": place(example),
                "figure": counted,
                "partner": None if partner is None else _id(evidence.data, partner, hashed),
                "partner_row": None if partner is None else _row(scanned.stream, partner),
            })  # fmt: skip
    return pa.Table.from_pylist(lines, SCHEMA)


def _id(data: DataEvidence, example: int, hashed: bool) -> str:
    name = str(data.ids[example])
    return hashed_id(name) if hashed else name


def _row(stream: Stream | None, example: int) -> int | None:
    numbers = None if stream is None else stream.source_rows
    return None if numbers is None else int(numbers[example])
