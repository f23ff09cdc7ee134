"""Parse methods written on the command line, such as ``knn(k=10)``, into instruments."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.keywords import answer_to
from sonde.core.renaming import current_names, former_names
from sonde.run.instruments.catalogue import find
from sonde.weights import Rewrite

Asked = Instrument | Rewrite | str


def instruments_of(given: Asked | Iterable[Asked]) -> list[Any]:
    """Return instruments: words are parsed, and a rewrite is replaced by the instruments it reads.

    Raises
    ------
    InputError
        If a word or a parameter does not exist, a value is wrong, or a rewrite reads examples.
    """
    several = [given] if isinstance(given, Asked) else given
    instruments: list[Any] = []
    for one in several:
        if isinstance(one, Rewrite):
            instruments += one.instruments()
        else:
            instruments += parse_methods(one) if isinstance(one, str) else [one]
    return instruments


def parse_methods(text: str, find: Callable[[str], type[Any]] = find) -> list[Any]:
    """Return the objects written as ``word(name=value),word``; ``find`` looks up the words.

    Examples
    --------
    >>> parse_methods("knn(k=10),energy")
    [KNN(k=10, m=10000), Energy(temperature=1.0)]
    >>> parse_methods("max-logit")
    [MaxLogit()]

    Raises
    ------
    InputError
        If a word or a parameter does not exist, or a value is wrong.
    """
    try:
        parsed = ast.parse(f"[{_with_underscores(text)}]", mode="eval").body
    except SyntaxError:
        raise InputError(
            "METHODS: expected method names separated by commas, e.g. knn(k=10),mahalanobis, "
            f"got {text!r}."
        ) from None
    nodes = parsed.elts if isinstance(parsed, ast.List) else []
    if not nodes:
        raise InputError("METHODS: expected at least one method. `sonde methods` lists them.")
    return [_method(node, find) for node in nodes]


def _with_underscores(text: str) -> str:
    """Return the text with ``max-logit`` written ``max_logit``; values are unchanged."""
    word = r"(^|,)(\s*[a-z]\w*(?:-[a-z]\w*)+)(?=\s*(?:\(|,|$))"
    return re.sub(word, lambda found: found[0].replace("-", "_"), text)


def _method(node: object, find: Callable[[str], type[Any]]) -> Any:
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args):
        raise InputError("METHODS: expected a method name such as mahalanobis or knn(k=10).")
    cls = find(node.func.id)
    names = list(inspect.signature(cls).parameters)
    parameters = {}
    for keyword in node.keywords:
        if keyword.arg not in {*names, *former_names(cls).values()}:
            raise InputError(
                f"METHODS: {node.func.id} has no parameter {keyword.arg!r}."
                f"{answer_to(str(keyword.arg), names)}"
            )
        try:
            parameters[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise InputError(
                f"METHODS: expected a plain value for {node.func.id}({keyword.arg}=...)."
            ) from None
    try:
        return cls(**current_names(cls, parameters, warn=True, stacklevel=4))
    except (TypeError, ValueError) as error:
        raise InputError(f"METHODS: {error}") from error
