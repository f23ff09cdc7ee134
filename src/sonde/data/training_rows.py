"""Rows in the forms of fine-tuning data, as texts or chats that a language model reads whole.

``{"prompt", "completion"}`` is one text, or one chat if both are lists of messages;
``{"instruction", "input", "output"}`` is a text in Alpaca's form; ``{"prompt", "chosen",
"rejected"}`` is a pair of texts, labelled 1 and 0. A named text column, or a column ``text`` or
``messages``, comes first. The prompt is kept beside its text, so that a loss counts the tokens of
the answer only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int

from sonde.core.errors import InputError
from sonde.data.sources import Row, Source

PROMPT = "prompt"
SIDES = ("rejected", "chosen")
PLAIN = ("text", "messages", "input_ids")
ALPACA = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n{given}### Response:\n"
)
Form = Callable[[Row], list[dict[str, Any]]]


def whole_rows(source: Source, names: Mapping[str, Any], text: str | None) -> Source:
    """Return the source with rows of whole texts, or itself if its rows have none of the forms.

    Parameters
    ----------
    source : Source
    names : mapping
        Its columns.
    text : str or None
        The text column that was named.

    Examples
    --------
    >>> from sonde.data.opening import open_source
    >>> plain, _ = open_source([{"prompt": "2 + 2 =", "completion": " 4"}])
    >>> [row["text"] for row in whole_rows(plain, {"prompt": [], "completion": []}, None).rows()]
    ['2 + 2 = 4']
    """
    if text is not None or any(name in names for name in PLAIN):
        return source
    for columns, form, n in FORMS:
        if all(name in names for name in columns):
            return _Formed(source, columns, form, n)
    return source


def _completed(row: Row) -> list[dict[str, Any]]:
    return [_joined(row["prompt"], row["completion"])]


def _preferred(row: Row) -> list[dict[str, Any]]:
    return [
        {**_joined(row.get("prompt"), row[side]), "label": label, "side": label}
        for label, side in enumerate(SIDES)
    ]


def _instructed(row: Row) -> list[dict[str, Any]]:
    given = str(row.get("input") or "")
    more = ", paired with an input that provides further context" if given else ""
    shown = f"### Input:\n{given}\n\n" if given else ""
    asked = ALPACA.format(more=more, instruction=row["instruction"], given=shown)
    return [_joined(asked, str(row["output"]))]


FORMS: tuple[tuple[tuple[str, ...], Form, int], ...] = (
    (("chosen", "rejected"), _preferred, 2),
    (("prompt", "completion"), _completed, 1),
    (("instruction", "output"), _instructed, 1),
)


def _joined(prompt: Any, answer: Any) -> dict[str, Any]:
    """Return a prompt and its answer as a text, or as a chat if both are lists of messages."""
    parts = [part for part in (prompt, answer) if part is not None]
    beside = {} if prompt is None else {PROMPT: prompt}
    if all(isinstance(part, str) for part in parts):
        return {"text": "".join(parts), **beside}
    if not all(isinstance(part, list) for part in parts):
        raise InputError(
            "expected a prompt and an answer that are both texts, or both lists of messages, got "
            f"{' and '.join(type(part).__name__ for part in parts)}. Write both in one form."
        )
    return {"messages": [message for part in parts for message in part], **beside}


@final
class _Formed(Source):
    """The rows of another source, each as one text or as a pair of texts."""

    def __init__(self, source: Source, columns: Sequence[str], form: Form, n: int) -> None:
        self.name, self.rows_differ, self.by_name = source.name, source.rows_differ, source.by_name
        self._source, self._columns, self._form, self._n = source, columns, form, n
        self.of_split(source.split or "", source.other_splits, source.split_was_named)
        self.split, self.prompt_column = source.split, PROMPT

    def rows(self) -> Iterator[Row]:
        """Yield the texts of every row."""
        for i, row in enumerate(self._source.rows()):
            yield from self._made(row, i)
        self.n_bad = self._source.n_bad

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some texts."""
        first, last = start // self._n, -(-stop // self._n)
        some = self._source.take(first, last)
        new_rows = [new for i, row in enumerate(some, first) for new in self._made(row, i)]
        return new_rows[start - first * self._n : stop - first * self._n]

    def _made(self, row: Row, number: int) -> list[Row]:
        others = {k: v for k, v in row.items() if k not in (*self._columns, "prompt", "input")}
        pair = {"pair": str(number)} if self._n > 1 else {}
        return [{**others, **pair, **new} for new in self._form(row)]

    @property
    def base(self) -> Path:
        """The folder of the other source."""
        return self._source.base

    def where(self, index: int) -> str:
        """Return the location of the text's row for messages."""
        return self._source.where(index // self._n)

    def place(self, index: int) -> str:
        """Return the location of the text's row for reports."""
        return self._source.place(index // self._n)

    def numbers(self, rows: Int[np.ndarray, "_row"]) -> Int[np.ndarray, "_row"]:
        """Return the indices of the texts' rows among all stored items."""
        return self._source.numbers(rows // self._n)

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the names of the sides of a preference, or those of the other source."""
        return SIDES if column == "label" and self._n > 1 else self._source.names_of(column)
