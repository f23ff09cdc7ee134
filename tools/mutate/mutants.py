"""Copies of a file that differ from it in one number, sign, operator, index or printed figure."""

import ast
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

SMALLEST = 1e-5
OPPOSITE = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


@dataclass(frozen=True)
class Mutant:
    """One changed copy of a file: the line, what it said and says, and the whole text."""

    line: int
    change: str
    text: str


class _Formulas(ast.NodeVisitor):
    """Collect the nodes of function bodies that compute, with a function that changes each."""

    def __init__(self) -> None:
        self.found: list[ast.expr] = []
        self._inside = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__post_init__", "__repr__", "table", "chart"):
            return
        self._inside += 1
        for part in node.body:
            self.visit(part)
        self._inside -= 1

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave messages alone."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave messages alone."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = None if isinstance(node.value, bool) else node.value
        is_number = isinstance(value, int | float) and (value == 0 or abs(value) >= SMALLEST)
        if self._inside and is_number:
            self.found.append(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if self._inside and type(node.op) in OPPOSITE:
            self.found.append(node)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and self._inside:
            self.found.append(node)
            if isinstance(node.operand, ast.Constant):
                return
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if self._inside and type(node.ops[0]) in BORDER:
            self.found.append(node)
        self.generic_visit(node)


def _changed(node: ast.expr) -> ast.expr:
    """Return the node with one thing changed."""
    new = copy.deepcopy(node)
    match new:
        case ast.Constant(value=int() as value):
            new.value = value + 1
        case ast.Constant(value=float() as value):
            new.value = value * 1.5 if value else 0.5
        case ast.BinOp():
            new.op = OPPOSITE[type(new.op)]()
        case ast.UnaryOp():
            return new.operand
        case ast.Compare():
            new.ops[0] = BORDER[type(new.ops[0])]()
    return new


class _Printed(ast.NodeVisitor):
    """Collect the arguments that fill fields of results, where a result is made."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self.found: list[ast.expr] = []
        self._fields = fields

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        for word in node.keywords:
            is_none = isinstance(word.value, ast.Constant) and word.value.value is None
            if word.arg in self._fields.get(name, ()) and not is_none:
                self.found.append(word.value)
        self.generic_visit(node)


def _moved(node: ast.expr) -> ast.expr:
    """Return an expression for a value that is wrong; None stays None."""
    return ast.parse(
        f"None if (_v := {ast.unparse(node)}) is None else 1.25 * _v + 0.125", mode="eval"
    ).body


def mutants(text: str) -> Iterator[Mutant]:
    r"""Yield every mutant of a file's text.

    Examples
    --------
    >>> [m.change for m in mutants("def f(x):\n    return x[0] - 2.0")]
    ['x[0] - 2.0 -> x[0] + 2.0', '0 -> 1', '2.0 -> 3.0']
    """
    visitor = _Formulas()
    visitor.visit(ast.parse(text))
    yield from _copies(text, visitor.found, _changed)


def wrong_figures(text: str, fields: Mapping[str, Sequence[str]]) -> Iterator[Mutant]:
    r"""Yield a mutant for each number that a file writes into a result.

    Parameters
    ----------
    text : str
    fields : dict
        Names of the numeric fields of each class of results.

    Examples
    --------
    >>> text = "def f(x):\n    return Gap(value=x, n=3)"
    >>> [m.change for m in wrong_figures(text, {"Gap": ["value", "se"]})]
    ['x -> None if (_v := x) is None else 1.25 * _v + 0.125']
    """
    visitor = _Printed(fields)
    visitor.visit(ast.parse(text))
    yield from _copies(text, visitor.found, _moved)


def _copies(
    text: str, nodes: Sequence[ast.expr], changed: Callable[[ast.expr], ast.expr]
) -> Iterator[Mutant]:
    raw = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in raw:
        starts.append(starts[-1] + len(line))
    whole = b"".join(raw)
    for node in nodes:
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        new = ast.unparse(changed(node))
        # An exchanged operator in the text of its parents keeps its place only in brackets.
        # Its lines stay as many, so that the code below keeps its line numbers.
        lines = "\n" * whole.count(b"\n", first, last)
        put = new if isinstance(node, ast.Constant) else f"({new}{lines})"
        yield Mutant(
            node.lineno,
            f"{ast.unparse(node)} -> {new}",
            (whole[:first] + put.encode() + whole[last:]).decode(),
        )
