"""Sentences about an explained input: the answer's name, and what it depends on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sonde.report._answers_words import answer_words
from sonde.report._format import shown

NAMED: Final = 3


def answer_sentence(
    example: dict[str, Any], shape: Sequence[int], places: Sequence[str], pieces: Sequence[str] = ()
) -> str:
    """Return the answer to one input, or "" if no answer is known.

    Parameters
    ----------
    example : dict
        Of the JSON of an explanation.
    shape : sequence of int
        Lines and columns of a picture's places, or their number.
    places, pieces : sequence of str
        Names of columns, tokens; where they are known.

    Examples
    --------
    >>> one = {"truth": "2", "answer": "8", "confidence": 0.9, "strongest": [0, 1], "without": "2"}
    >>> answer_sentence(one, (8, 8), ())
    'is 2, called 8 (90 % sure); depends most on the upper left part; without it: 2'
    """
    if example.get("answer") is None:
        return ""
    words = answer_words(example)
    if not example["strongest"]:
        return words
    where = _where(example["strongest"], shape, pieces or places)
    return f"{words}; depends most on {where}; without it: {shown(example['without'], 40)}"


def _where(strongest: Sequence[int], shape: Sequence[int], names: Sequence[str]) -> str:
    if len(shape) == 2:
        return f"the {_ninth(strongest, shape)} part"
    named = [i for i in strongest if i < len(names)]
    if not named:
        return f"place {', '.join(map(str, strongest[:NAMED]))}"
    return ", ".join(_visible(names[i]) for i in named[:NAMED])


def _visible(name: str) -> str:
    blank = "a line break" if "\n" in name else "a blank"
    return f"'{shown(name.strip(), 40)}'" if name.strip() else blank


def _ninth(strongest: Sequence[int], shape: Sequence[int]) -> str:
    """Return the cell of a 3 x 3 grid with the strongest positions of an image.

    The mean of the places would mislead: if two corners matter, it lies in the middle.
    """
    held: Counter[str] = Counter()
    for rank, i in enumerate(strongest):
        high = _third(i // shape[1], shape[0], ("upper", "", "lower"))
        wide = _third(i % shape[1], shape[1], ("left", "", "right"))
        held[" ".join(filter(None, (high, wide))) or "middle"] += len(strongest) - rank
    return held.most_common(1)[0][0]


def _third(at: float, size: int, said: tuple[str, str, str]) -> str:
    return said[min(2, int(3 * (at + 0.5) / size))]
