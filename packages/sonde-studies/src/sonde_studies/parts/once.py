"""Copies of rows count once in every recipe."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

from sonde.data import different_rows
from sonde.report import Answer

P = ParamSpec("P")


def copies_once(
    *besides: str,
) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Return a decorator: a recipe reads each different row of its data once.

    Copies are no independent rows, and a copy of a training row among those that judge is known to
    what was trained. The answer says how many rows of each data set are different. Data are the
    parameters without a narrower type than ``Any``.

    Parameters
    ----------
    *besides : str
        Parameters whose rows are only counted: they keep their copies.
    """

    def decorated(recipe: Callable[P, Answer]) -> Callable[P, Answer]:
        signature = inspect.signature(recipe)
        parameters = signature.parameters.values()
        names = [p.name for p in parameters if p.annotation is Any and p.name not in besides]

        @wraps(recipe)
        def asked(*args: P.args, **kwargs: P.kwargs) -> Answer:
            given = signature.bind(*args, **kwargs)
            facts = dict[str, str]()
            for name in names:
                if given.arguments.get(name) is not None:
                    found = different_rows(given.arguments[name], given.arguments.get("limit"))
                    given.arguments[name] = found.data
                    if found.n_different < found.n:
                        told = f"{found.n:,}, {found.n_different:,} different (copies count once)"
                        facts[f"rows of {name}"] = told
                    if found.n_named_apart:
                        facts[f"equal rows of {name}"] = (
                            f"{found.n_named_apart:,}, which count as independent because their "
                            "ids differ"
                        )
            answer = recipe(*given.args, **given.kwargs)  # pyright: ignore
            return replace(answer, facts={**answer.facts, **facts}) if facts else answer

        return asked

    return decorated
