"""Card of a changed model: what the changed model is, in place of the card of the original."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sonde.core.wording import gib, significant

CARD: Final = "README.md"
ORIGINAL_CARD: Final = "README.original.md"
"""Copy of the original's card, beside the card of the changed model."""


def changed_card(
    original: str, model: str, method: str, n_bytes: tuple[int, int], figures: Mapping[str, str]
) -> str:
    """Return the card of a changed model as Markdown.

    Parameters
    ----------
    original : str
        Card of the original model. Its front matter (licence, tags) is kept without the results in
        ``model-index``, which were measured on the original.
    model : str
        Name of the original model. Of a path on this machine, only the last part is written.
    method : str
        Method that changed the weights.
    n_bytes : tuple of two int
        Size of the weight files of the original and of the changed model.
    figures : mapping of str to str
        Further facts by name.
    """
    name = Path(model).name if Path(model).is_absolute() else model
    before, after = map(gib, n_bytes)
    rows = {"Method": f"`{method}`", "Weight files": f"{after} (original: {before})", **figures}
    lines = [
        f"# {Path(name).name}, changed by sonde",
        f"The weights of `{name}` were changed. The figures of the original model do not hold for "
        f"this model; they are in [{ORIGINAL_CARD}]({ORIGINAL_CARD}), with its data and licences.",
        "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())]),
    ]
    return _front_matter(original) + "\n\n".join(lines) + "\n"


def shown_figures(figures: Mapping[str, float]) -> dict[str, str]:
    """Return a plan's figures as lines of a card."""
    return {key.replace("_", " ").capitalize(): significant(x, 3) for key, x in figures.items()}


def _front_matter(card: str) -> str:
    """Return the front matter of a card without measured results, or an empty text."""
    match = re.match(r"---\r?\n(.*?\n)---\r?\n", card, re.DOTALL)
    if match is None:
        return ""
    kept = re.sub(r"^model-index:.*\n(?:(?:[ \t\-].*)?\n)*", "", match[1], flags=re.MULTILINE)
    return f"---\n{kept}---\n\n"
