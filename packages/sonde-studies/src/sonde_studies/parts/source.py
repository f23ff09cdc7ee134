"""Python code without names, comments and layout, and the remainder as byte code."""

import ast
import builtins
import dis
import io
import keyword
import tokenize
from collections.abc import Callable
from typing import Any

import numpy as np

KEPT_NAMES = {*keyword.kwlist, *dir(builtins), "self", "cls"}
STRUCTURE = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}


def without_names(text: str) -> str:
    """Return code with numbered names, except keywords and built-in names."""
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
    """Return code without names, comments, and its own spaces, line breaks and brackets."""
    return ast.unparse(ast.parse(without_comments(text)))


def listing(text: str) -> str:
    """Return the byte-code listing of stripped code, without addresses."""
    found = list[str]()
    waiting: list[Any] = [compile(without_layout(text), "", "exec")]
    while waiting:
        unit = waiting.pop(0)
        found += [f"{i.opname} {i.argrepr}".strip() for i in dis.get_instructions(unit)]
        waiting += [c for c in unit.co_consts if isinstance(c, type(unit))]
    return "\n".join(line.split(" at 0x")[0] for line in found)


STEPS: dict[str, Callable[[str], str]] = {
    "names": without_names,
    "comments": without_comments,
    "layout": without_layout,
    "all but byte code": listing,
}


def _rewritten(text: str, word: Callable[[tokenize.TokenInfo], str]) -> str:
    """Return code with each token replaced, at the same lines and distances."""
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


def parses(text: str) -> bool:
    """Return whether Python can parse and compile a text, also in stripped form."""
    try:
        listing(text)
    except (SyntaxError, ValueError, tokenize.TokenError):
        return False
    return True


def without_some(text: str, n: int, draw: np.random.Generator) -> str:
    """Return a text without ``n`` random characters; empty if there are fewer."""
    gone = set(draw.permutation(len(text))[: max(0, n)].tolist())
    return "".join(c for i, c in enumerate(text) if i not in gone)
