"""Pictures of scores from Python: each function returns an SVG file as text.

A notebook shows what they return, ``.save(path)`` writes it as SVG or PNG. The pages of
``sonde evaluate`` and ``sonde score`` hold the same pictures.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import torch

from sonde.core.errors import InputError
from sonde.metrics import auroc as _auroc
from sonde.report._exhibits import level_of, marked
from sonde.report._fit import WIDE
from sonde.report._format import number, plural, score_words, shown
from sonde.report._heat import SIDE, ColourScale, heat, legend, panels
from sonde.report._markup import Markup, el, join
from sonde.report._pictures_scores import auroc_picture, histogram_picture, roc_picture
from sonde.report._standalone import Svg, drawn, plain
from sonde.run.scoring.curves import RESAMPLES, roc_points
from sonde.run.scoring.curves import histogram as _histogram

LETTER: Final = 9
LINE: Final = 30
COLUMNS: Final = 80
MOST_LINES: Final = 400


__all__ = ["Svg", "auroc_by_site", "heat_map", "histogram", "roc", "tokens"]


def histogram(
    usual: Any,
    unusual: Any = None,
    threshold: float | None = None,
    *,
    title: str = "",
    bins: int = 40,
    width: int = WIDE,
) -> Svg:
    """Return the histogram of in-distribution scores, and of out-of-distribution scores.

    Parameters
    ----------
    usual, unusual : array (row,)
        Scores, higher = more unusual. Infinite ones are counted but not drawn.
    threshold : float, optional
        Drawn as a dashed line, e.g. ``calibration.threshold(0.05)``.
    title : str
        What the scores are of.
    bins : int, default=40
    width : int, default=770

    Raises
    ------
    InputError
        If there is no finite score, or a NaN.

    Examples
    --------
    >>> histogram([0.1, 0.2, 0.4], [0.9], threshold=0.5)[:4]
    '<svg'
    """
    bins_of = _histogram(usual, () if unusual is None else unusual, bins)
    kinds = ("usual",) if unusual is None else ("usual", "unusual")
    picture = histogram_picture({**bins_of, "threshold": threshold}, title, kinds)
    return drawn([picture] if picture else [], width)


def roc(
    scores: Any,
    unusual: Any,
    group: Any = None,
    *,
    title: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
    width: int = 480,
) -> Svg:
    """Return the ROC curve with a 95 % band over resampled groups.

    Parameters
    ----------
    scores, unusual, group, resamples, seed
        As in ``sonde.metrics.auroc``.
    title : str
    width : int, default=480

    Examples
    --------
    >>> roc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], resamples=20)[:4]
    '<svg'
    """
    curve = roc_points(scores, unusual, group, resamples, seed)
    area = _auroc(scores, unusual, group, resamples=resamples, seed=seed)
    words = number(float(area.value))
    if area.low == area.low:
        words += f" ({number(area.low)} to {number(area.high)})"
    return drawn([roc_picture(curve, title, words)], width)


def auroc_by_site(rows: list[dict[str, Any]], instrument: str, *, width: int = WIDE) -> Svg:
    """Return the AUROC of one detector at each site, with intervals.

    Parameters
    ----------
    rows : list of dict
        What ``sonde.run.scoring.evaluate.evaluate`` returns.
    instrument : str
        The detector.
    width : int, default=770

    Raises
    ------
    InputError
        If no row of this detector has an AUROC.
    """
    picture = auroc_picture([row for row in rows if row["instrument"] == instrument], instrument)
    return drawn([picture] if picture else [], width)


def heat_map(
    image: Any, scores: Any, grid: Any, *, low: float | None = None, high: float | None = None
) -> Svg:
    """Return an image beside a grey copy with warm colours over unusual patches.

    The most unusual patch has a box. Brightness is stretched from the darkest to the brightest
    value. The colours lie over a bilinear map between the centres of patches (``score_map``).

    Parameters
    ----------
    image : array (channel, line, column), (line, column) or None
        None draws the map alone.
    scores : array (row,)
        One for each patch; an infinite one is drawn in full colour.
    grid : array (row, 2)
        Line and column of each patch, as ``batch.grid`` holds them.
    low, high : float, optional
        Scores without colour and in full colour; from the median to the largest score by default.

    Raises
    ------
    InputError
        If a patch is missing or there twice, a score is NaN, or the image has another shape.

    Examples
    --------
    >>> heat_map(torch.zeros(4, 4), [0.0, 1.0], [[0, 0], [0, 1]])[:4]
    '<svg'
    """
    values = [float(v) for v in torch.as_tensor(scores).flatten()]
    scale = ColourScale.of(values)
    scale = ColourScale(scale.low if low is None else low, scale.high if high is None else high)
    if not scale.high > scale.low:
        raise InputError(f"heat_map: expected low < high, got {scale.low} and {scale.high}.")
    drawn_heat = heat(_image(image), torch.as_tensor(grid), values, scale)
    drawing = join(*panels(drawn_heat, 16.0), legend(scale, "heat", 16.0, drawn_heat.height + 28))
    wide = 32 + (
        drawn_heat.width * 2 + 16 if drawn_heat.image is not None else max(drawn_heat.width, SIDE)
    )
    high_ = drawn_heat.height + 84
    shifted = el("g", drawing, transform="translate(0 16)")
    ground = el("rect", width=wide, height=high_, fill="var(--paper)")
    made_svg = el(
        "svg", el("title", drawn_heat.message), ground, shifted, xmlns="http://www.w3.org/2000/svg",
        width=wide, height=high_, viewBox=f"0 0 {wide} {high_}", role="img",
        font_family="sans-serif",
    )  # fmt: skip
    return Svg(plain(made_svg))


def _image(image: Any) -> torch.Tensor | None:
    if image is None:
        return None
    pixels = torch.as_tensor(image).detach().float().cpu()
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) not in (1, 3) or 0 in pixels.shape:
        raise InputError(
            f"heat_map: expected an image of 1 or 3 channels x lines x columns, got the shape "
            f"{tuple(pixels.shape)}."
        )
    return pixels


def tokens(
    pieces: Sequence[str],
    scores: Any,
    p: Any = None,
    *,
    alpha: float = 0.05,
    own_lines: bool = False,
) -> Svg:
    """Return a text whose tokens, or steps, have a warmer background if they are unusual.

    The colour is the rank of a score among those given: the upper 40, 25, 12, 5 and 1 %. Parts
    with an alarm are bold and underlined; without any alarm, up to three of the highest parts are.

    Parameters
    ----------
    pieces : sequence of str
        Tokens as text, with their blanks; or steps.
    scores : array (row,)
        One for each piece.
    p : array (row,), optional
        Their p-values.
    alpha : float, default=0.05
    own_lines : bool, default=False
        Give each piece a line of its own: for the steps of a trajectory.

    Raises
    ------
    InputError
        If there is no piece, the number of scores differs from the number of pieces, or a score is
        NaN.

    Examples
    --------
    >>> tokens(["The ", "cat ", "xqz"], [0.1, 0.2, 9.0])[:4]
    '<svg'
    """
    values = [float(v) for v in torch.as_tensor(scores).flatten()]
    levels = [None] * len(values) if p is None else [None if v is None else float(v) for v in p]
    if not pieces or len(pieces) != len(values) or len(levels) != len(values):
        raise InputError(
            f"tokens: expected a score for each piece, and at least one, got {len(pieces)} pieces, "
            f"{len(values)} scores and {len(levels)} p-values."
        )
    if any(v != v for v in values):
        raise InputError("tokens: expected scores without NaN. Score such rows as +inf.")
    return Svg(plain(tokens_svg(pieces, values, levels, alpha, own_lines)))


def tokens_svg(
    pieces: Sequence[str],
    scores: Sequence[float],
    p: Sequence[float | None],
    alpha: float,
    own_lines: bool,
) -> Markup:
    """Return a drawing of tokens; with ``own_lines`` each token has its own line."""
    scale, keep = ColourScale.of(scores), marked(scores, p, alpha)
    drawn: list[Markup] = []
    line = column = 0
    for i, piece in enumerate(pieces):
        words = _said(i, scores[i], p[i], i in keep)
        for word in _lines(piece):
            if column and (column + _width(word) > COLUMNS):
                line, column = line + 1, 0
            if word:
                drawn.append(_box(word, line, column, words, level_of(scores[i], scale), i in keep))
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
    message = f"{len(pieces):,} parts of a text; the most anomalous part:  {best}"
    ground = el("rect", width=wide, height=high, fill="var(--paper)")
    return el(
        "svg", el("title", message), ground, *drawn, xmlns="http://www.w3.org/2000/svg",
        width=wide, height=high, viewBox=f"0 0 {wide} {high}", role="img",
        font_family="DejaVu Sans Mono, Menlo, Consolas, monospace", font_size=15,
    )  # fmt: skip


def _lines(piece: str) -> list[str]:
    """Split a piece at line breaks, which are drawn as symbols, and at the line width."""
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
    words = f"{i}: score {score_words(score)}"
    words += "" if p is None else f", p {number(p)}"
    return f"{words}, marked" if strong else words


def _left(n: int, line: int) -> Markup:
    """Return the line with the number of parts that are not drawn."""
    words = f"{plural(n, 'more part')} not drawn"
    return el("text", words, x=16, y=25 + line * LINE, fill="var(--soft)")


def _box(word: str, line: int, column: int, said: str, level: int, strong: bool) -> Markup:
    x, y, wide = 16 + column * LETTER, 8 + line * LINE, _width(word) * LETTER
    parts: list[Any] = [el("title", said)]
    if level:
        parts.append(
            el("rect", x=x, y=y, width=wide, height=LINE - 6, fill=f"var(--h{level})", rx=3)
        )
    # SVG drops a space at either end, and would stretch the letters over its width
    kept = shown(word).replace(" ", "\u00a0")
    parts.append(
        el("text", kept, x=x, y=y + 17, textLength=wide, lengthAdjust="spacingAndGlyphs",
           fill="var(--ink)", font_weight="bold" if strong else None)
    )  # fmt: skip
    if strong:
        parts.append(el("rect", x=x, y=y + LINE - 8, width=wide, height=2.5, fill="var(--ink)"))
    return el("g", *parts)
