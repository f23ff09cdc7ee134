"""The answer of a recipe: a sentence, a table, a picture, and a page with all three."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

from sonde.core._shown import listed
from sonde.core.chart import Chart
from sonde.core.result import Result
from sonde.report._format import shown
from sonde.report._picture import Numbers, Picture
from sonde.report.document import Document, Section, Table, figures
from sonde.report.documents import save_document

SCHEMA: Final = "sonde-recipe/1"
Level = Literal["clear", "note", "warning", "error", "withheld"]


@final
@dataclass(frozen=True, kw_only=True)
class Answer(Result):
    """Answer of a recipe to a question about a user's own models and data.

    Parameters
    ----------
    question : str
        What was asked.
    sentence : str
        The answer, with its figures.
    verdict : str
        The answer in one to three words.
    level : {"clear", "note", "warning", "error", "withheld"}
        How much it asks for attention.
    rows : tuple of dict
        The table: a value or None for each column.
    drawn : dict
        The picture, made with ``curves``, ``bars`` or ``marks`` of ``sonde.core``.
    facts : dict of str to str
        Names and values under the head of the page.
    advice : tuple of str
        What to do, and what the figures cannot say.
    """

    question: str
    sentence: str
    verdict: str
    rows: tuple[Mapping[str, Any], ...]
    drawn: Chart
    level: Level = "clear"
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    advice: tuple[str, ...] = ()

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return the rows of the answer."""
        return pa.Table.from_pylist([dict(row) for row in self.rows])  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def chart(self) -> Chart:
        """Return the picture of the answer."""
        return self.drawn

    def _repr_mimebundle_(
        self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> dict[str, Any]:
        text = f"{self.verdict}: {self.sentence}"
        return {
            "text/plain": text,
            "text/html": f"<p>{escape(text)}</p>{listed(self.table())}",
            "application/vnd.vegalite.v5+json": self.drawn,
        }

    def json(self, recipe: str = "", inputs: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return everything as JSON values, with the recipe's name and its inputs' names."""
        return {
            "schema": SCHEMA,
            "recipe": recipe,
            "inputs": dict(inputs or {}),
            "question": self.question,
            "verdict": self.verdict,
            "level": self.level,
            "sentence": self.sentence,
            "value": float(self.value),
            "unit": self.unit,
            "n": self.n,
            "facts": dict(self.facts),
            "rows": [dict(row) for row in self.rows],
            "chart": self.drawn,
            "advice": list(self.advice),
        }

    def save(self, path: str | Path) -> Path:
        """Write a page (``.html``) or the JSON, by the ending of the name."""
        return save_document(self.json(), path)


def document(found: dict[str, Any]) -> Document:
    """Return the answer of a recipe as a document.

    Parameters
    ----------
    found : dict
        JSON of an answer, ``sonde-recipe/1``.
    """
    facts = [*found["inputs"].items(), *found["facts"].items()]
    columns = tuple(dict.fromkeys(name for row in found["rows"] for name in row))
    cells = tuple(tuple(row.get(name) for name in columns) for row in found["rows"])
    drawn = Picture("answer", found["chart"]["title"], lambda _: found["chart"])
    return Document(
        f"recipe {found['recipe']}".strip(),
        found["question"],
        found["sentence"],
        [(name, shown(value, 200)) for name, value in facts],
        [
            Section("picture", "Picture", figures(drawn), where="page"),
            Section("figures", "All figures", [Table(Numbers(columns, cells, "figures"))]),
        ],
        badge=(found["level"], found["verdict"]),
        notes=found["advice"],
    )
