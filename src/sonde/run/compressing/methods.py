"""Choose a method that makes weights smaller, by its word and by the size to reach."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sonde.core.errors import InputError, near
from sonde.run.instruments.families import snake_case
from sonde.run.instruments.words import parse_methods
from sonde.weights import Rewrite

SIZES = "4bit (2bit to 8bit), 1bit, 50%, 2:4, rank16 or 5blocks"
DEFAULTS = {
    "bits": "gptq",
    "remove": "sparse_gpt",
    "pattern": "sparse_gpt",
    "rank": "low_rank_weights",
    "blocks": "drop_blocks",
}
SIGNS, BETWEEN = "sign_quant", "bit_allocation"
"""Methods for a single bit, and for means between whole bits."""


@dataclass(frozen=True)
class Target:
    """Requested size of the weights.

    Parameters
    ----------
    said : str
        As the user typed it.
    parameter : str
        Name of the method's parameter: bits, remove, pattern, rank or blocks.
    value : int, float or str
    """

    said: str
    parameter: str
    value: Any

    @classmethod
    def of(cls, text: str) -> "Target":
        """Return the size that ``4bit``, ``50%``, ``2:4``, ``rank16`` or ``5blocks`` means.

        Raises
        ------
        InputError
            If the text is no size.
        """
        word = text.strip().lower()
        if form := re.fullmatch(r"([1-8](?:\.\d+)?)[ -]?bits?", word):
            bits = float(form[1])
            return cls(word, "bits", int(bits) if bits.is_integer() else bits)
        if form := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", word):
            if float(form[1]) == 0:
                raise InputError(f"--to: expected to remove more than 0 %, got {text!r}.")
            return cls(word, "remove", float(form[1]) / 100)
        if re.fullmatch(r"\d+:\d+", word):
            return cls(word, "pattern", word)
        if form := re.fullmatch(r"rank[ =-]?(\d+)", word):
            return cls(word, "rank", int(form[1]))
        if form := re.fullmatch(r"(\d+)[ -]?blocks?", word):
            return cls(word, "blocks", int(form[1]))
        raise InputError(f"--to: expected {SIZES}, got {text!r}.")


def weight_methods() -> dict[str, type[Any]]:
    """Return the methods of the compress family that change weights, by their words."""
    from sonde import compress

    members = [getattr(compress, name) for name in compress.__all__]
    kinds = [m for m in members if isinstance(m, type) and issubclass(m, Rewrite)]
    return {getattr(kind, "word", snake_case(kind.__name__)): kind for kind in kinds}


def word_for(target: Target) -> str:
    """Return the name of the method that suits a size."""
    if target.parameter == "bits" and target.value == 1:
        return SIGNS
    if target.parameter == "bits" and target.value != int(target.value):
        return BETWEEN
    return DEFAULTS[target.parameter]


def method_asked(text: str | None, target: Target | None, given: Mapping[str, Any]) -> Any:
    """Return the requested method with its size and parameters.

    Parameters
    ----------
    text : str or None
        A word such as ``gptq``, or ``gptq(damp=0.05)``; None for the method that suits the size.
    target : Target or None
        None for the method's own size; four bits if ``text`` is None too.
    given : mapping
        Further parameters, such as ``group``; None stands for the method's own value.

    Raises
    ------
    InputError
        If there is no such method, or it has no parameter that reaches the size.
    """
    if text is None:
        target = target or Target.of("4bit")
        text = word_for(target)
    parsed = parse_methods(text, _known)
    if len(parsed) != 1:
        raise InputError(f"--method: expected one method, got {text!r}.")
    method, word = parsed[0], text.partition("(")[0].replace("-", "_")
    has = {f.name for f in fields(method)}
    asked = {name: value for name, value in given.items() if value is not None}
    if target is not None:
        if target.parameter not in has:
            able = [w for w, kind in weight_methods().items()
                    if target.parameter in {f.name for f in fields(kind)}]  # fmt: skip
            raise InputError(
                f"--to {target.said}: {word} has no parameter {target.parameter}, so it cannot "
                f"reach that size. Methods that can: {', '.join(able)}."
            )
        asked[target.parameter] = target.value
        if (
            target.parameter == "bits"
            and target.value == 8
            and "group" in has
            and "group" not in text
        ):
            asked.setdefault("group", 0)  # rows of one scale have a kernel, and are fine enough
    for name in asked:
        if name not in has:
            raise InputError(
                f"--{name}: {word} has no parameter {name}; its parameters are "
                f"{', '.join(sorted(has))}."
            )
    return replace(method, **asked)


def _known(word: str) -> type[Any]:
    kinds = weight_methods()
    if word not in kinds:
        raise InputError(
            f"--method: no method is called {word!r}.{near(word, kinds)} Known: {', '.join(kinds)}."
        )
    return kinds[word]
