"""Tokens or steps as a drawing: fixed-width text on coloured ground, underlined where marked."""

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from sonde.report._exhibits import level_of, marked
from sonde.report._format import number, plural, score_words, shown
from sonde.report._heat import ColourScale
from sonde.report._markup import Markup, el

LETTER: Final = 9
LINE: Final = 30
COLUMNS: Final = 80
MOST_LINES: Final = 400


def tokens_svg(
    pieces: Sequence[str],
    scores: Sequence[float],
    p: Sequence[float | None],
    alpha: float,
    own_lines: bool,
) -> Markup:
    """Return the drawing; ``own_lines`` gives each piece a line of its own."""
    scale, keep = ColourScale.of(scores), marked(scores, p, alpha)
    drawn: list[Markup] = []
    line = column = 0
    for i, piece in enumerate(pieces):
        said = _said(i, scores[i], p[i], i in keep)
        for word in _lines(piece):
            if column and (column + _width(word) > COLUMNS):
                line, column = line + 1, 0
            if word:
                drawn.append(_box(word, line, column, said, level_of(scores[i], scale), i in keep))
            column += _width(word)
            if word.endswith("\u21b5"):
                line, column = line + 1, 0
        if own_lines and column:
            line, column = line + 1, 0
        if line > MOST_LINES and i + 1 < len(pieces):
            line, column = line + 1, 0
            drawn.append(_left(len(pieces) - i - 1, line))
            break
    high, wide = (line + 1) * LINE + 16, COLUMNS * LETTER + 32
    most = max(range(len(scores)), key=lambda i: scores[i])
    best = _said(most, scores[most], p[most], most in keep)
    message = f"{len(pieces):,} parts of a text; the most unusual: {best}"
    ground = el("rect", width=wide, height=high, fill="var(--paper)")
    return el(
        "svg", el("title", message), ground, *drawn, xmlns="http://www.w3.org/2000/svg",
        width=wide, height=high, viewBox=f"0 0 {wide} {high}", role="img",
        font_family="DejaVu Sans Mono, Menlo, Consolas, monospace", font_size=15,
    )  # fmt: skip


def _lines(piece: str) -> list[str]:
    """Return a piece cut at line breaks, which show as signs, and at the width of a line."""
    text = piece.replace("\t", " ")
    parts = [f"{part}\u21b5" for part in text.split("\n")[:-1]] + [text.split("\n")[-1]]
    out: list[str] = []
    for part in parts:
        word = ""
        for letter in part:
            if _width(word + letter) > COLUMNS:
                out.append(word)
                word = ""
            word += letter
        out.append(word)
    return out


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _said(i: int, score: float, p: float | None, strong: bool) -> str:
    said = f"{i}: score {score_words(score)}"
    said += "" if p is None else f", p {number(p)}"
    return f"{said}, marked" if strong else said


def _left(n: int, line: int) -> Markup:
    """Return the line that says how many parts are not drawn."""
    said = f"{plural(n, 'more part')} not drawn"
    return el("text", said, x=16, y=25 + line * LINE, fill="var(--soft)")


def _box(word: str, line: int, column: int, said: str, level: int, strong: bool) -> Markup:
    x, y, wide = 16 + column * LETTER, 8 + line * LINE, _width(word) * LETTER
    parts: list[Any] = [el("title", said)]
    if level:
        parts.append(
            el("rect", x=x, y=y, width=wide, height=LINE - 6, fill=f"var(--h{level})", rx=3)
        )
    parts.append(
        el("text", shown(word), x=x, y=y + 17, textLength=wide, lengthAdjust="spacingAndGlyphs",
           fill="var(--ink)", font_weight="bold" if strong else None)
    )  # fmt: skip
    if strong:
        parts.append(el("rect", x=x, y=y + LINE - 8, width=wide, height=2.5, fill="var(--ink)"))
    return el("g", *parts)
