"""What a model reads in Python code: names, comments, layout, or what the code does."""

import ast
import builtins
import dis
import io
import keyword
import tokenize
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.report import Answer
from sonde_studies.parts.figures import error_of, melted
from sonde_studies.parts.rows import rows_with

QUESTION = "What does the model read in code: names, comments or layout?"
LEAST = 20
WORDED = {"moved": "stripped", "random bytes": "random bytes deleted"}
KEPT_NAMES = {*keyword.kwlist, *dir(builtins), "self", "cls"}
Strip = Callable[[str], str]


def code_strip(
    model: Model,
    code: Any,
    *,
    text_column: str = "text",
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Strip names, then comments, then layout from Python code, and see how far states move.

    How far is the mean squared distance from the states of the original, in units of that between
    two different pieces. Beside each step stands the same number of bytes deleted at random. The
    last step is the listing of the byte code, which holds what the code does and no more.

    Example: sonde recipe code-strip MODEL FUNCTIONS -o stripped.html

    Parameters
    ----------
    model : Model
        A text model.
    code : str, path or iterable
        Rows with a function or module that Python can parse.
    text_column : str, default="text"
        Column of the code.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the bytes that are deleted.
    """
    rows = rows_with("code_strip", code, [text_column], LEAST, limit)
    texts = [text for row in rows if _parses(text := str(row[text_column]))]
    if len(texts) < LEAST:
        raise InputError(
            f"code_strip: expected {LEAST} or more pieces that Python can parse, got {len(texts)} "
            f"of {len(rows)}. Pass whole functions or modules."
        )
    draw = np.random.default_rng(seed)
    plain = _states(model, texts, site, progress)
    spread = float((plain - plain.mean(0)).square().sum(1).mean()) * 2
    table, moved = list[dict[str, Any]](), dict[str, Any]()
    for name, strip in STEPS.items():
        stripped = [strip(text) for text in texts]
        x, at_random = _states(model, stripped, site, progress), None
        moved[name] = (x - plain).square().sum(1).numpy() / spread
        gone = [len(text) - len(new) for text, new in zip(texts, stripped, strict=True)]
        if strip is not listing:
            dealt = [_deleted(text, n, draw) for text, n in zip(texts, gone, strict=True)]
            y = _states(model, dealt, site, progress)
            at_random = float((y - plain).square().sum(1).mean()) / spread
        table.append({
            "without": name, "bytes": float(np.mean([len(t) for t in stripped])),
            "moved": float(moved[name].mean()), "random bytes": at_random,
            "original is nearest": float((torch.cdist(x, plain).argmin(1)
                                          == torch.arange(len(x))).double().mean()),
        })  # fmt: skip
    names = [*moved]
    steps = {a: moved[a] - (moved[names[i - 1]] if i else 0.0) for i, a in enumerate(names)}
    steps.pop(names[-1])
    most = max(steps, key=lambda name: float(steps[name].mean()))
    step, error = float(steps[most].mean()), error_of(steps[most])
    return Answer(
        question=QUESTION,
        verdict=f"mostly {most}" if step > 2 * error else "none of them",
        level="clear",
        sentence=f"Without {names[0]} the states move by {table[0]['moved']:.0%} of the distance "
        f"between two pieces, without {names[1]} too by {table[1]['moved']:.0%}, without "
        f"{names[2]} too by {table[2]['moved']:.0%}; random deletion of as many bytes moves them "
        f"by {table[2]['random bytes']:.0%}.",
        value=step,
        se=error,
        null=0.0,
        n=len(texts),
        rows=tuple(table),
        drawn=curves(
            "How far states move while code is stripped",
            melted(table, "without", "moved", "what", WORDED),
            ChartAxis("without", title="without, step by step"),
            ChartAxis("moved", share=True, zero=True),
            by="what",
        ),
        facts={"pieces": str(len(texts)), "not parsed": str(len(rows) - len(texts))},
        advice=(
            "Steps add up: each is taken beside those before it. A model that reads what code does "
            "moves little until the listing.",
        ),
    )


def without_names(text: str) -> str:
    """Return code whose names are numbered, apart from keywords and built-in names."""
    known: dict[str, str] = {}

    def renamed(token: tokenize.TokenInfo) -> str:
        if token.type != tokenize.NAME or token.string in KEPT_NAMES:
            return token.string
        return known.setdefault(token.string, f"v{len(known)}")

    return _rewritten(text, renamed)


def without_comments(text: str) -> str:
    """Return code without names, comments and docstrings."""
    strings = {
        (node.value.lineno, node.value.col_offset)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }

    def emptied(token: tokenize.TokenInfo) -> str:
        if token.type == tokenize.COMMENT:
            return ""
        return '""' if token.start in strings else token.string

    return without_names(_rewritten(text, emptied))


def without_layout(text: str) -> str:
    """Return code without names, comments and its own spaces, line breaks and brackets."""
    return ast.unparse(ast.parse(without_comments(text)))


def listing(text: str) -> str:
    """Return the listing of the byte code of stripped code, without addresses."""
    found = list[str]()
    waiting: list[Any] = [compile(without_layout(text), "", "exec")]
    while waiting:
        unit = waiting.pop(0)
        found += [f"{i.opname} {i.argrepr}".strip() for i in dis.get_instructions(unit)]
        waiting += [c for c in unit.co_consts if isinstance(c, type(unit))]
    return "\n".join(line.split(" at 0x")[0] for line in found)


STEPS: dict[str, Strip] = {
    "names": without_names,
    "comments": without_comments,
    "layout": without_layout,
    "all but byte code": listing,
}


def _rewritten(text: str, word: Callable[[tokenize.TokenInfo], str]) -> str:
    """Return code with a new word for each token, at the same lines and distances."""
    made, line, column = list[str](), 1, 0
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.ENDMARKER:
            break
        if token.start[0] > line:
            made.append("".join(lines[line - 1 : token.start[0] - 1])[column:])
            line, column = token.start[0], 0
        made.append(lines[line - 1][column : token.start[1]] if line <= len(lines) else "")
        made.append(word(token) if token.type not in STRUCTURE else token.string)
        line, column = token.end
    return "".join(made)


STRUCTURE = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}


def _parses(text: str) -> bool:
    try:
        listing(text)
    except (SyntaxError, ValueError, tokenize.TokenError):
        return False
    return True


def _deleted(text: str, n: int, draw: np.random.Generator) -> str:
    """Return a text without ``n`` characters drawn at random; all of it if there are fewer."""
    gone = set(draw.permutation(len(text))[: max(0, n)].tolist())
    return "".join(c for i, c in enumerate(text) if i not in gone)


def _states(model: Model, texts: list[str], site: str, progress: bool) -> Tensor:
    """Return the mean state of each text, over all pieces of a text that is long."""
    items = [{"text": t or " ", "id": str(i)} for i, t in enumerate(texts)]
    found = gather(read(model, items, sites=site, reducer="mean", check=False), progress)
    x, weight = found.rows[[*found.rows][-1]].double(), torch.ones(len(found)).double()
    if found.length is not None:
        weight = found.length.double()
    total, n = (torch.zeros(len(texts), k).double() for k in (x.shape[1], 1))
    total.index_add_(0, found.item, x * weight[:, None])
    return total / n.index_add_(0, found.item, weight[:, None]).clamp(min=1e-9)
