"""Texts with a scored part: an answer after its prompt, or a trace between delimiters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from sonde.core.errors import InputError
from sonde.data._located import check_locates, collated_parts, located, units
from sonde.data.encoder import Collated, Encoder, Piece, Prepared
from sonde.data.sources import Row
from sonde.data.text import TextEncoder


@final
@dataclass(frozen=True, eq=False)
class SpanEncoder(Encoder):
    """One text per row with a scored part, whose tokens are step 0; other tokens have no step.

    A token belongs to the part that its last character lies in.

    Parameters
    ----------
    text : TextEncoder
        How a text becomes tokens and a batch.
    span : (str, str)
        Two columns: the first character of the part, and the character after its last. Or two
        delimiters: the part begins after the first opening delimiter and ends with the next closing
        delimiter.
    by_columns : bool
    """

    text: TextEncoder
    span: tuple[str, str]
    by_columns: bool
    kind: str = "span"

    def __post_init__(self) -> None:
        check_locates(self.text, "span")

    @property
    def even(self) -> bool:
        """True if padding is not allowed."""
        return self.text.even

    def key(self, row: Row) -> bytes:
        """Hash the UTF-8 of the text."""
        return self.text.key(row)

    def size(self, row: Row) -> int:
        """Return the bytes of the text."""
        return self.text.size(row)

    def other_content(self, row: Row) -> bytes:
        """Return the bounds of the scored part."""
        return repr(self._ends(row)).encode()

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return one example for each row; a text is never cut into chunks."""
        return [[self._piece(row)] for row in rows]

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Tokenise each row and mark the tokens of the scored part."""
        before, after = self.text.vocabulary.before, self.text.vocabulary.after
        out: list[Prepared] = []
        for number, _ in wanted:
            tokens, inside = self._read(rows[number])
            room = self._room(tokens)
            ids = [*before, *tokens[:room], *after]
            segment = [*(-1 for _ in before), *inside[:room], *(-1 for _ in after)]
            out.append(Prepared(((ids, {}, None, None), segment), len(ids)))
        return out

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Pad the tokens on the right."""
        return collated_parts(self.text, items)

    def identity(self) -> dict[str, Any]:
        """Return column, truncation, tokenizer and span as identity."""
        return {**self.text.identity(), "kind": self.kind, "span": list(self.span)}

    def notes(self) -> list[str]:
        """Return the notes of the text's encoder."""
        return self.text.notes()

    def _piece(self, row: Row) -> Piece:
        tokens, inside = self._read(row)
        room = self._room(tokens)
        around = len(self.text.vocabulary.before) + len(self.text.vocabulary.after)
        if 0 in inside[room:]:
            raise InputError(
                f"the text has {len(tokens)} tokens, the model reads {room}, and the span begins "
                "after them; shorten the text, or read a longer part of it (--max-length)"
            )
        if room < len(tokens) and self.text.long != "truncate":
            raise InputError(
                f"the text has {len(tokens)} tokens, the model reads {room}, and a text with a "
                "span cannot be cut into chunks; pass long='truncate' (--long truncate)"
            )
        return Piece(0, room + around, len(tokens) - room)

    def _room(self, tokens: Sequence[int]) -> int:
        """Return how many tokens of the text are read."""
        limit, words = self.text.max_length, self.text.vocabulary
        if limit is None:
            return len(tokens)
        return min(len(tokens), limit - len(words.before) - len(words.after))

    def _whole(self, row: Row) -> str:
        text = row.get(self.text.inputs[0])
        if not isinstance(text, str):
            raise InputError(
                f"expected a text in column {self.text.inputs[0]!r}, got {type(text).__name__}"
            )
        return text

    def _read(self, row: Row) -> tuple[list[int], list[int]]:
        """Return the tokens of a text, with 0 inside the scored part and -1 elsewhere."""
        whole, (start, end) = self._whole(row), self._ends(row)
        tokens, last = located(self.text, whole)
        first, after = units(self.text, whole[:start]), units(self.text, whole[:end])
        inside = [0 if first <= place < after else -1 for place in last]
        if 0 not in inside:
            raise InputError(f"the part from character {start} to {end} holds no token")
        return tokens, inside

    def _ends(self, row: Row) -> tuple[int, int]:
        """Return the part's first character, and the character after its last."""
        whole = self._whole(row)
        if self.by_columns:
            start, end = (_character(row.get(name), name) for name in self.span)
            if not 0 <= start < end <= len(whole):
                raise InputError(
                    f"expected 0 <= {self.span[0]} < {self.span[1]} <= {len(whole)} (the number "
                    f"of characters of the text), got {start} and {end}"
                )
            return start, end
        opening, closing = self.span
        at = whole.find(opening)
        if at < 0:
            raise InputError(f"the text has no {opening!r}")
        start = at + len(opening)
        stop = whole.find(closing, start)
        if stop < 0:
            raise InputError(f"the text has no {closing!r} after {opening!r}")
        return start, stop + len(closing)


def _character(value: Any, name: str) -> int:
    plain = value.strip() if isinstance(value, str) else value
    try:
        if int(plain) == float(plain):
            return int(plain)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"expected the number of a character in column {name!r}, got {value!r}")


def span_of(span: str | Sequence[str] | None) -> tuple[str, str] | None:
    """Return the two words of a span as the user gives it.

    Raises
    ------
    InputError
        If there are not two.
    """
    words = span.split(",") if isinstance(span, str) else span
    if words is None:
        return None
    pair = tuple(str(word).strip() for word in words)
    if len(pair) != 2 or not all(pair):
        raise InputError(
            "open_inputs: expected span as two columns or two delimiters, for instance "
            f"'start,end' or '<think>,</think>', got {span!r}."
        )
    return pair[0], pair[1]
