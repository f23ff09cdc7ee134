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
    if len(rows) < least:
        raise InputError(f"{recipe}: expected {least} or more rows, got {len(rows)}. Pass more.")
    missing = [name for name in columns if any(name not in row for row in rows)]
    if missing:
        raise InputError(
            f"{recipe}: expected the columns {', '.join(columns)} in every row, got rows without "
            f"{', '.join(missing)}. The first row has {', '.join(map(str, rows[0]))}."
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


def melted(
    rows: Sequence[Mapping[str, Any]], x: str, value: str, by: str, columns: Mapping[str, str]
) -> Rows:
    """Return several columns of a table as one, for a picture.

    Parameters
    ----------
    rows : sequence of mapping
    x : str
        The column that is kept.
    value, by : str
        Names of the new columns: of the numbers, and of what they are.
    columns : mapping of str to str
        What each column is called in the picture. Cells of None are left out.
    """
    return [
        {x: row[x], value: row[column], by: name}
        for row in rows
        for column, name in columns.items()
        if row.get(column) is not None
    ]


def check_order(recipe: str, accuracy: float, names: Sequence[str]) -> None:
    """Raise if a model is so often wrong that labels must be in another order than its outputs.

    Raises
    ------
    InputError
        If accuracy is below half of chance.
    """
    if accuracy < 0.5 / max(len(names), 1):
        told = ", ".join(f"{k} is {name}" for k, name in enumerate(names))
        raise InputError(
            f"{recipe}: expected labels that are the numbers of the model's outputs, got an "
            f"accuracy of {accuracy:.3f}, far below chance. Here {told}: name the classes in the "
            "order of the outputs: classes."
        )
