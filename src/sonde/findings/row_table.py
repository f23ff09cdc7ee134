"""The inputs that findings count, as a table: one line for each input of each finding."""

import pyarrow as pa

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
])  # fmt: skip


def row_table(scanned: Scanned) -> pa.Table:
    """Return every input that a finding counts, most telling first.

    ``data`` is the data set as typed, ``row`` counts its items from 0 and is null where they are
    not numbered, ``place`` is a file, a line or a row.
    """
    evidence, hashed = scanned.evidence, scanned.settings.hash_ids
    lines = []
    for finding in (check.finding for check in scanned.checks):
        if finding is None:
            continue
        data = evidence.versus.other_data if finding.of_other else evidence.data
        stream = scanned.other_stream if finding.of_other else scanned.stream
        place = places_of(stream, hashed)
        numbers = None if stream is None else stream.source_rows
        for example in finding.examples:
            name = str(data.ids[example])
            lines.append({
                "code": finding.code,
                "level": finding.level,
                "data": data.name,
                "id": hashed_id(name) if hashed else name,
                "row": None if numbers is None else int(numbers[example]),
                "place": place(example),
            })  # fmt: skip
    return pa.Table.from_pylist(lines, SCHEMA)
