"""The inputs as a table: a line for each input of a finding, and for each other sampled input."""

from itertools import chain, repeat
from typing import Any

import pyarrow as pa

from sonde.core.stream import Stream
from sonde.findings.answered import KNOWN, answered_rows
from sonde.findings.evidence.inputs.suspect_labels import doubts_of
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.evidence.shared_rows import EXAMPLES
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
    ("truth", pa.string()),
    ("answer", pa.string()),
    ("confidence", pa.float64()),
    ("loss", pa.float64()),
    ("right", pa.bool_()),
    ("group", pa.string()),
    ("label_doubt", pa.float64()),
])  # fmt: skip


def row_table(scanned: Scanned) -> pa.Table:
    """Return the inputs that findings name, most informative first, then other sampled inputs.

    ``data`` is the data set as typed, ``row`` counts its items from 0 and is null where they are
    not numbered, ``place`` is a file, a line or a row. ``figure`` is the number by which the check
    counted this input, e.g. its score or how many copies there are; ``partner`` and
    ``partner_row`` are the id and the number of the input of DATA that this input resembles. A
    sampled input that no finding counts has one line without ``code``; wrong answers of large loss
    come first. ``label_doubt``, from -1 to 1, is above 0 if another class is likelier than the
    label. What the model says of a sampled row of DATA stands in all its lines.
    """
    evidence, hashed = scanned.evidence, scanned.settings.hash_ids
    lines = []
    answers = {row[EXAMPLES][0]: row for row in answered_rows(evidence)}
    for example, doubt in doubts_of(evidence).items():
        answers.get(example, {})["label_doubt"] = doubt
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
                **_answer({} if finding.of_other else answers.get(example, {}), hashed),
            })  # fmt: skip
    place = places_of(scanned.stream, hashed)
    named = {(line["data"], line["row"], line["id"]) for line in lines}
    for example, answer in answers.items():
        line = {
            "data": evidence.data.name,
            "id": _id(evidence.data, example, hashed),
            "row": _row(scanned.stream, example),
            "place": place(example),
            **_answer(answer, hashed),
        }
        if (line["data"], line["row"], line["id"]) not in named:
            lines.append(line)
    return pa.Table.from_pylist(lines, SCHEMA)


def _answer(answer: dict[str, Any], hashed: bool) -> dict[str, Any]:
    """Return the columns about a row's answer."""
    group = answer.get("group")
    cells: dict[str, Any] = {name: answer.get(name) for name in (*KNOWN, "label_doubt")}
    for side in ("truth", "answer"):
        cells[side] = None if cells[side] is None else str(cells[side])
    return cells | {"group": hashed_id(group) if hashed and group is not None else group}


def _id(data: DataEvidence, example: int, hashed: bool) -> str:
    name = str(data.ids[example])
    return hashed_id(name) if hashed else name


def _row(stream: Stream | None, example: int) -> int | None:
    numbers = None if stream is None else stream.source_rows
    return None if numbers is None else int(numbers[example])
