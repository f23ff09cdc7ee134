"""Examples on a page: a heat map, marked tokens, a marked step, or numbers."""

import math
from collections.abc import Sequence
from typing import Any, Final

from sonde.report._format import number, plural
from sonde.report._heat import STEPS, ColourScale, heat, legend, panels
from sonde.report._markup import ElementIds, Markup, el, join
from sonde.report._parts import tabled
from sonde.report._picture import Numbers

MARKED: Final = 3
MOST_LISTED: Final = 30
MOST_PIECES: Final = 1500
_WHOLE: Final = "The detector has one score for the whole example, so no token is marked."
_PATCHES: Final = (
    "Colour: the score of a patch, from the median of all patches shown here to the highest. "
    "Box: the most anomalous patch of the example."
)


def exhibit(found: Any, scale: ColourScale, alpha: float, names: ElementIds) -> Markup:
    """Return the parts of one example, a ``sonde.run.scoring.exhibit.Exhibit``."""
    if found.kind == "image":
        return _image(found, scale, names)
    if found.kind == "row":
        return _values(found, names)
    return _coloured_text(found, scale, alpha, names)


def level_of(score: float, scale: ColourScale) -> int:
    """Return the colour level of a score: the number of scale steps below it, 0 to 5."""
    return sum(score > step for step in scale.steps)


def marked(scores: Sequence[float], p: Sequence[float | None], alpha: float) -> set[int]:
    """Return the marked parts: those with an alarm, else at most the three most unusual.

    Without an alarm at most a quarter of the parts are marked, but at least one; no part if all
    scores are equal.
    """
    alarms = {i for i, value in enumerate(p) if value is not None and value <= alpha}
    if alarms:
        return alarms
    if not scores or min(scores) == max(scores):
        return set()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return set(order[: max(1, min(MARKED, len(scores) // 4))])


def _image(found: Any, scale: ColourScale, names: ElementIds) -> Markup:
    if not found.grid:
        return _alone(found) if found.pixels is None else _plain_image(found, names)
    plot = heat(found.pixels, found.grid, found.score, scale)
    key = names.new("heat")
    shown = [
        el("svg", group, viewBox=f"0 0 {plot.width:g} {plot.height:g}", width=f"{plot.width:g}",
           height=f"{plot.height:g}", role="img", tabindex="0", cls="plot patches", aria_label=text)
        for group, text in zip(panels(plot, 0.0) if plot.image is None else _apart(plot),
                               _said(plot), strict=True)
    ]  # fmt: skip
    bar = el(
        "svg", legend(scale, key), viewBox="-1 -1 226 38", width=226, height=38, role="img",
        aria_label=f"Colours from {number(scale.low)} to {number(scale.high)}", cls="bar",
    )  # fmt: skip
    rows = sorted(zip(found.grid, found.score, strict=True), key=lambda row: -row[1])[:MOST_LISTED]
    table = tuple((f"{r + 1}, {c + 1}", _finite(s), ) for (r, c), s in rows)  # fmt: skip
    numbers = Numbers(("line, column", "score"), table, "patches")
    side = el("div", *shown, cls="panels")
    key_of_marks = el("p", _PATCHES, cls="reading")
    return join(side, bar, key_of_marks, tabled(numbers, names, "Most anomalous patches"))


def _apart(made: Any) -> list[Markup]:
    """Return the panels, each shifted to its own left edge."""
    return [panels(made, 0.0)[0], panels(made, -made.width - 16)[1]]


def _said(made: Any) -> list[str]:
    return ([] if made.image is None else ["The image as the model reads it"]) + [made.message]


def _plain_image(found: Any, names: ElementIds) -> Markup:
    plot = heat(found.pixels, [(0, 0)], [0.0], ColourScale(0.0, 1.0))
    view = f"0 0 {plot.width:g} {plot.height:g}"
    label = "The image as the model reads it"
    return el(
        "svg", panels(plot)[0], viewBox=view, width=f"{plot.width:g}", height=f"{plot.height:g}",
        role="img", aria_label=label, cls="plot patches",
    )  # fmt: skip


def _alone(found: Any) -> Markup:
    return el("p", f"{plural(len(found.score), 'row')} without a position.", cls="empty")


def _coloured_text(found: Any, scale: ColourScale, alpha: float, names: ElementIds) -> Markup:
    keep = marked(found.score, found.p, alpha)
    strong = {found.position[i] for i in keep}
    scores = dict(zip(found.position, zip(found.score, found.p, strict=True), strict=True))
    what = "step" if found.kind == "steps" else "token"
    parts: list[Markup] = []
    if found.pieces:
        pieces = list(enumerate(found.pieces[:MOST_PIECES], found.first))
        spans = [_piece(at, text, scores.get(at), at in strong, scale, what) for at, text in pieces]
        parts.append(
            el("ol", *spans, cls="steps") if what == "step" else el("p", *spans, cls="tokens")
        )
        if len(found.pieces) > MOST_PIECES:
            cut = f"{MOST_PIECES:,} of {len(found.pieces):,} tokens are shown."
            parts.append(el("p", cut, cls="reading"))
        parts.append(_key_of_colours(what) if scores else el("p", _WHOLE, cls="reading"))
    order = sorted(range(len(found.score)), key=lambda i: -found.score[i])[:MOST_LISTED]
    texts = dict(enumerate(found.pieces, found.first))
    has_text = ("text",) if found.pieces else ()
    rows = [
        (str(found.position[i]), _finite(found.score[i]), found.p[i],
         "marked" if i in keep else "", *(texts.get(found.position[i], "") for _ in has_text))
        for i in order
    ]  # fmt: skip
    if rows:
        numbers = Numbers((what, "score", "p", "mark", *has_text), tuple(rows), f"{what}s")
        parts.append(tabled(numbers, names, f"Most anomalous {what}s", opened=not found.pieces))
    return join(*parts)


def _key_of_colours(what: str) -> Markup:
    """Return the legend for the colours of tokens or steps."""
    shares = [f"{share:g} %" for share in (100 - 100 * q for q in STEPS)]
    samples = [el("span", f" {text} ", cls=f"h{i}") for i, text in enumerate(shares, 1)]
    spaced = [part for sample in samples for part in (sample, " ")]
    words = f"Colour: {what}s among the most anomalous "
    mark = el("mark", "underlined")
    tail = f" of all {what}s shown here; ", mark, ": alarms, or the highest if there are no alarms."
    return el("p", words, *spaced, *tail, cls="reading")


def _piece(
    at: int,
    text: str,
    known: tuple[float, float | None] | None,
    strong: bool,
    scale: ColourScale,
    what: str,
) -> Markup:
    """Return a token or step, coloured by its score, with an accessible mark if it is marked."""
    lines = el("br") if what == "token" and "\n" in text else None
    words = text.replace("\n", "\u21b5" if what == "token" else " ").replace("\t", " ")
    tag = "mark" if strong else "span"
    if known is None:
        body = el("span", words)
    else:
        texts = [f"{what} {at}", f"score {number(known[0])}"]
        texts += [] if known[1] is None else [f"p {number(known[1])}"]
        if math.isinf(known[0]):
            texts[1] = "score infinite"
        level = level_of(known[0], scale)
        note = el("span", " (marked) ", cls="offscreen") if strong else None
        cls = f"h{level}" if level else None
        body = el(tag, words, note, cls=cls, data_tip=" · ".join(texts))
    if what == "token":
        return join(body, lines)
    score = el("span", f"score {_word(known)}", cls="score") if known else None
    flag = el("b", "marked: ") if strong else None
    return el("li", flag, body, " ", score, value=at)


def _word(known: tuple[float, float | None]) -> str:
    word = "infinite" if math.isinf(known[0]) else number(known[0])
    return word if known[1] is None else f"{word}, p {number(known[1])}"


def _values(found: Any, names: ElementIds) -> Markup:
    if not found.values:
        return Markup("")
    rows = tuple((str(unit), _finite(value)) for unit, value in found.values)
    numbers = Numbers(("unit", "value"), rows, "values")
    return tabled(numbers, names, "Largest entries of the row", opened=True)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "infinite"
