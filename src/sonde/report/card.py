"""A section for a model card (Hugging Face ``README.md``): results of a scan, without inputs."""

import re
from pathlib import Path
from typing import Any, Final

from sonde.core.errors import InputError, reason_of
from sonde.files.durable import atomic_write
from sonde.files.places import to_path
from sonde.report._answers_words import answers_sentence, not_judged
from sonde.report._format import plural, shown
from sonde.report._section_findings import checks_line, verdict_line

START: Final = "<!-- sonde: written by `sonde scan --card` -->"
END: Final = "<!-- /sonde -->"
SENTENCE: Final = 400


def to_card(report: dict[str, Any]) -> str:
    """Return the section of a scan as Markdown: answers, findings and how it was made.

    Parameters
    ----------
    report : dict
        JSON of a scan, schema ``sonde-scan/1``.
    """
    where = report["provenance"]
    answers = answers_sentence(report) or not_judged(report) or "the answers were not evaluated"
    verdict = verdict_line(report["verdict"])
    lines = [
        START,
        "## Checked with sonde",
        f"Data: {_plain(where['data']['name'])}, {plural(where['data']['n_rows'], 'row')}.",
        f"Answers: {_plain(answers)}.",
        f"Findings: {verdict}. {checks_line(report['verdict'])}.",
        _findings(report["findings"]),
        f"sonde {where['versions']['sonde']}, torch {where['versions']['torch']}. A finding is "
        "a number at a layer; a scan without findings does not prove that the model has no "
        "faults.",
        END,
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def save_card(report: dict[str, Any], path: str | Path) -> Path:
    """Write the section into a Markdown file; replace an earlier section of sonde.

    Raises
    ------
    InputError
        If the name does not end in ``.md``.
    """
    path = to_path(path)
    check_card(path)
    section, text = to_card(report), _card_text(path)
    earlier = re.compile(re.escape(START) + r".*?" + re.escape(END) + r"\n?", re.DOTALL)
    if earlier.search(text):
        text = earlier.sub(lambda _: section, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{section}" if text.strip() else section
    atomic_write(path, text.encode())
    return path


def check_card(path: Path) -> None:
    """Raise if the name of a model card does not end in ``.md``, or its text cannot be read."""
    if path.suffix.lower() != ".md":
        raise InputError(f"scan: expected --card to end in .md, got {path}. Write README.md.")
    _card_text(path)


def _card_text(path: Path) -> str:
    """Return the text of a model card, empty if there is none."""
    try:
        return path.read_text("utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise InputError(f"scan: --card {path} cannot be read: {reason_of(error)}.") from None


def _findings(found: list[dict[str, Any]]) -> str:
    """Return the table of findings that are not ignored; notes stay in the report."""
    rows = [f for f in found if f["level"] in ("error", "warning") and not f["ignored"]]
    if not rows:
        return ""
    head = "| level | code | finding |\n|---|---|---|\n"
    body = (f"| {f['level']} | {f['code']} | {_plain(f['sentence'])} |" for f in rows)
    return head + "\n".join(body)


def _plain(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return re.sub(r"([|`<>*_\[\]])", r"\\\1", " ".join(shown(text, SENTENCE).split()))
