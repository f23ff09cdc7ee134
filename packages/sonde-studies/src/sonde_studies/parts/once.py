"""Copies of rows count once in every recipe."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

from sonde import InputError
from sonde.data import different_rows, kept_rows
from sonde.report import Answer
from sonde_studies.parts.owners import owners_of
from sonde_studies.parts.rows import one_of_each

P = ParamSpec("P")


def copies_once(
    *besides: str,
    one_of_group: Sequence[str] = (),
) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Return a decorator: a recipe reads each different row of its data once.

    Copies are no independent rows, and a copy of a training row among those that judge is known to
    what was trained. The answer says how many rows of each data set are different. Data are the
    parameters without a narrower type than ``Any``.

    Parameters
    ----------
    *besides : str
        Parameters whose rows are only counted: they keep their copies.
    one_of_group : sequence of str, default=()
        Parameters that keep one random row of each group (a person, a document, a set of near
        copies). Recipes that split rows keep groups whole instead, with
        ``sonde_studies.parts.owners``.
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
            for name in one_of_group:
                if given.arguments.get(name) is not None:
                    limit, column, seed = map(
                        given.arguments.get, ("limit", "group_column", "seed")
                    )
                    owner = owners_of(given.arguments[name], column, limit)
                    chosen = one_of_each(owner, seed or 0)
                    if len(chosen) < len(owner):
                        given.arguments[name] = kept_rows(given.arguments[name], chosen)
                        counted = f"{len(chosen):,} of {len(owner):,} rows; one row of each counts"
                        facts[f"groups of {name}"] = counted
            try:
                answer = recipe(*given.args, **given.kwargs)  # pyright: ignore
            except InputError as error:
                if not facts:
                    raise
                counted = "; ".join(f"{what}: {n}" for what, n in facts.items())
                raise InputError(f"{error} The recipe read {counted}.") from error
            return replace(answer, facts={**answer.facts, **facts}) if facts else answer

        return asked

    return decorated
