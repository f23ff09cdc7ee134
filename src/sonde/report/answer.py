"""The answer of a recipe: a sentence, a table, a picture, and a page that holds all three."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

from sonde.core.chart import Chart
from sonde.core.result import Result
from sonde.report._format import number, shown
from sonde.report._markup import ElementIds
from sonde.report._parts import figure, table
from sonde.report._picture import Cell, Numbers, Picture
from sonde.report.document import Head, Section, document_page, save_document

SCHEMA: Final = "sonde-recipe/1"
Level = Literal["clear", "note", "warning", "error", "withheld"]


@final
@dataclass(frozen=True, kw_only=True)
class Answer(Result):
    """What a recipe answers about a user's own models and data.

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

    def json(self, recipe: str = "", inputs: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return everything as JSON values, with the recipe's word and the words of its inputs."""
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
        """Write a page (``.html``) or its JSON, by the name's ending."""
        return save_recipe(self.json(), path)


def recipe_to_html(found: dict[str, Any]) -> str:
    """Return the answer of a recipe as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of an answer, ``sonde-recipe/1``.
    """
    names = ElementIds()
    facts = [*found["inputs"].items(), *found["facts"].items()]
    head = Head(
        f"recipe {found['recipe']}".strip(),
        found["question"],
        found["sentence"],
        [(name, shown(value, 200)) for name, value in facts],
        badge=(found["level"], found["verdict"]),
        notes=found["advice"],
    )
    columns = tuple(dict.fromkeys(name for row in found["rows"] for name in row))
    cells = tuple(tuple(row.get(name) for name in columns) for row in found["rows"])
    drawn = Picture("answer", found["chart"]["title"], lambda _: found["chart"])
    parts = [
        Section("picture", "Picture", [figure(drawn, names)]),
        Section("figures", "All figures", [table(Numbers(columns, cells, "figures"), names)]),
    ]
    return document_page(found, head, parts)


def save_recipe(found: dict[str, Any], path: str | Path) -> Path:
    """Write the answer of a recipe as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, recipe_to_html, "save_recipe")


def cells_of(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the cells of an answer's table as text."""
    columns = list(dict.fromkeys(name for row in found["rows"] for name in row))
    rows = [[_cell(row.get(name)) for name in columns] for row in found["rows"]]
    return columns, rows


def _cell(value: Cell) -> str:
    return value if isinstance(value, str) else "-" if value is None else number(value, 4)
