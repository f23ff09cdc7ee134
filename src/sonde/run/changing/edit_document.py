"""A change of a model and its judgement as JSON, ``sonde-edit/1``, for pages and terminals."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sonde.core.finite import finite_json
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.judge import Judgement
from sonde.run.changing.language_figures import LanguageFigures

SCHEMA: Final = "sonde-edit/1"


def edit_document(
    word: str,
    judgement: Judgement | None,
    *,
    model: str,
    method: str,
    places: Sequence[str],
    target: str,
    neutral: str = "",
    output: str | None = None,
    tables: Sequence[EditTable] = (),
    samples: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
    language: LanguageFigures | None = None,
) -> dict[str, Any]:
    """Return the JSON document of an edit.

    Parameters
    ----------
    word : str
        The word of ``sonde edit``.
    judgement : Judgement or None
        None if the act only reads.
    model, method : str
        As the user typed them.
    places : sequence of str
        Sites or tensors that change.
    target : str
        The subject of the effect, in words.
    neutral : str
        The neutral data, in words.
    output : str or None
        The folder that was written.
    tables : sequence of EditTable, optional
    samples : sequence of mapping, optional
        Texts ``before`` and ``after`` with their ``prompt``.
    notes : sequence of str, optional
    language : LanguageFigures, optional
        Eight figures of a changed language model.
    """
    return {
        "schema": SCHEMA,
        "word": word,
        "model": model,
        "method": method,
        "places": list(places),
        "target": target,
        "neutral": neutral,
        "output": output,
        "undo": None if output is None else f"sonde edit undo {output} -o {output}-undone",
        "judgement": None if judgement is None else finite_json(judgement.json()),
        "tables": [
            {
                "title": t.title,
                "columns": list(t.columns),
                "rows": finite_json([list(r) for r in t.rows]),
            }
            for t in tables
        ],
        "samples": [dict(s) for s in samples],
        "notes": list(notes),
        "language": None if language is None else finite_json(language.json()),
    }
