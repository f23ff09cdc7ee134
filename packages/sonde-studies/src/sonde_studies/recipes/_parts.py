"""What several recipes share: columns of the data, states of a column, heads, wording."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.data import rows_of

Rows = list[dict[str, Any]]
Answers = np.ndarray[Any, np.dtype[Any]]


def rows_with(
    recipe: str, data: Any, columns: Sequence[str], least: int, limit: int | None = None
) -> Rows:
    """Return the rows of the data.

    Raises
    ------
    InputError
        If there are fewer than ``least``, or a row lacks a column.
    """
    rows = rows_of(data, limit)
    missing = [name for name in columns if any(name not in row for row in rows)]
    if missing or len(rows) < least:
        known = ", ".join(map(str, rows[0])) if rows else "none"
        raise InputError(
            f"{recipe}: expected {least} or more rows with the columns {', '.join(columns)}, got "
            f"{len(rows)} rows, and none called {', '.join(missing) or 'otherwise'} in some of "
            f"them. The first row has {known}."
        )
    return rows


def states_of(
    model: Model, values: Sequence[Any], sites: str = "auto", progress: bool = True, **options: Any
) -> dict[str, Float[Tensor, "_row _dim"]]:
    """Return the states of single inputs, such as one column of some rows, by site.

    Parameters
    ----------
    model : Model
    values : sequence
        Texts, images or tensors, by what the model reads.
    sites : str, default="auto"
        Patterns, with commas between them.
    progress : bool, default=True
    **options
        Of ``sonde.read``.
    """
    kind = "image" if "image" in model.task else "x" if model.task == "tensor" else "text"
    items = [{kind: value, "id": str(i)} for i, value in enumerate(values)]
    stream = read(model, items, sites=patterns(sites), logits=False, **options)
    return {site: rows.double() for site, rows in gather(stream, progress).rows.items()}


def patterns(sites: str) -> str | list[str]:
    """Return the patterns of a word with commas between them."""
    return [part.strip() for part in sites.split(",")] if "," in sites else sites


def linear_head(strength: float = 0.1) -> Any:
    """Return a logistic regression on standardised rows."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))


def apart(label: Answers, share: float, seed: int) -> tuple[Answers, Answers]:
    """Return the numbers of rows that fit and of rows that judge, with all classes in both."""
    from sklearn.model_selection import train_test_split  # pyright: ignore

    rows = np.arange(len(label))
    kept, held = train_test_split(rows, test_size=share, stratify=label, random_state=seed)
    return np.sort(kept), np.sort(held)


def most_frequent(label: Any) -> float:
    """Return the share of the most frequent class."""
    return float(np.unique(label, return_counts=True)[1].max() / len(label))


def error_of(right: Any) -> float:
    """Return the standard error of a mean over independent rows."""
    return float(np.std(right) / np.sqrt(max(len(right), 1)))


def long_rows(rows: Mapping[str, Mapping[str, float]], name: str, column: str) -> Rows:
    """Return a table of tables as a row for each cell, for a picture."""
    return [
        {name: row, column: key, "value": value}
        for row, cells in rows.items()
        for key, value in cells.items()
    ]
