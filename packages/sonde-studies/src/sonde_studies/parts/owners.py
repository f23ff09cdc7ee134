"""Groups of rows, such as persons, documents and near copies, which no split divides."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError
from sonde.data import rows_of
from sonde.stats import joined_groups
from sonde_studies.parts.rows import Values, one_of_each

GROUP, ID = "group", "id"
LOOKED_AT, MOST = 100, 4000
"""Rows that are read for each row within a limit, and most rows that are searched for copies."""
GRAMS, WIDTH, SIDE, LEAST_UNITS = (3, 4), 256, 16, 3


def owners_of(data: Any, column: str | None = None, limit: int | None = None) -> Values:
    """Return the number of each row's group, in the order of the data.

    The group of a row is its value in the group column, else the row itself. Groups with near
    copies of each other are one group: numbers, texts and images are compared.

    Parameters
    ----------
    data : str, path or re-iterable
    column : str, optional
        Column of the group; by default "group" if there is one.
    limit : int, optional
        How many rows the recipe reads.

    Raises
    ------
    InputError
        If no row has the column.
    """
    rows = rows_of(data, None if limit is None else LOOKED_AT * limit)
    name = column or GROUP
    if column is not None and not any(column in row for row in rows):
        raise InputError(
            f"group_column: expected a column of the data, got {column!r}; the first row has "
            f"{', '.join(map(str, rows[0] if rows else ()))}. Name another."
        )
    number = dict[str | int, int]()
    values = (i if row.get(name) is None else str(row[name]) for i, row in enumerate(rows))
    found = [number.setdefault(value, len(number)) for value in values]
    owner, told = torch.tensor(found, dtype=torch.long), (name, ID)
    for x in _contents(rows, told) if len(rows) <= MOST else ():
        owner = joined_groups(x, owner)
    return np.unique(owner.numpy(), return_inverse=True)[1]


def joined_owners(owner: Values, other: Values) -> Values:
    """Return groups that rows share if they share either of two groups, or are linked by some."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    own = np.unique(owner, return_inverse=True)[1]
    n, k = int(own.max(initial=-1)) + 1, int(other.max(initial=-1)) + 1
    links = coo_array((np.ones(len(own)), (own, n + other)), shape=(n + k, n + k))
    return connected_components(links, directed=False)[1][own]


def parted(owner: Values, share: float, draw: np.random.Generator) -> tuple[Values, Values]:
    """Return the rows of a random fraction of the groups, and all other rows, in order.

    Parameters
    ----------
    owner : array (row,)
        Group of each row.
    share : float
        Fraction of the groups on the first side.
    draw : numpy.random.Generator
    """
    order = draw.permutation(len(owner))
    first = owner[order[np.sort(np.unique(owner[order], return_index=True)[1])]]
    is_first = np.isin(owner, first[: int(share * len(first))])
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def judges(owner: Values, rows: Values, seed: int = 0) -> Values:
    """Return one random row of each group among some rows: independent rows that judge."""
    return rows[one_of_each(owner[rows], seed)]


def shuffled_labels(label: Values, owner: Values, seed: int) -> Values:
    """Return the labels dealt to other groups: each group gets those of one group."""
    draw, (names, member) = np.random.default_rng(seed), np.unique(owner, return_inverse=True)
    if len(names) == len(label):
        return draw.permutation(label)
    found = label.copy()
    for own, other in enumerate(draw.permutation(len(names))):
        to = member == own
        found[to] = np.resize(label[member == other], int(to.sum()))
    return found


def group_means(values: Values, owner: Values) -> Values:
    """Return the mean of each group's values: rows of one group are not independent."""
    _, group = np.unique(owner, return_inverse=True)
    return np.bincount(group, values) / np.bincount(group)


def groups_told(owner: Values, what: str = "rows") -> dict[str, str]:
    """Return the fact that an answer states if its rows have groups."""
    n = len(np.unique(owner))
    if n == len(owner):
        return {}
    return {"groups": f"{n:,} of {len(owner):,} {what}; none is split, one row of each judges"}


def _contents(rows: Sequence[dict[str, Any]], told: Iterable[str]) -> Iterable[Tensor]:
    """Yield the numbers of each column of arrays, texts or images, and of all single numbers."""
    single = list[Tensor]()
    for name in [key for key in (rows[0] if rows else ()) if key not in told]:
        x = _vectors([row.get(name) for row in rows])
        if x is None:
            continue
        if x.shape[1] == 1:
            single.append((x - x.mean(0)) / x.std(0).clamp(min=1e-12))
        elif x.shape[1] >= LEAST_UNITS and 2 * len(x.unique(dim=0)) > len(x):
            yield x
    if len(single) >= LEAST_UNITS:
        yield torch.cat(single, 1)


def _vectors(values: Sequence[Any]) -> Tensor | None:
    """Return the values of a column as rows of numbers, or None if they are names or missing."""
    first = values[0]
    if isinstance(first, Tensor | np.ndarray | list | tuple | float):
        try:
            parts = [torch.as_tensor(v).detach().cpu().double().flatten() for v in values]
            x = torch.stack(parts)
        except (ValueError, TypeError, RuntimeError):  # of several lengths, or no numbers
            return None
        return x if bool(x.isfinite().all()) else None
    if hasattr(first, "convert") or _is_image_file(first):
        return _thumbnails(values)
    if isinstance(first, str) and 2 * len({*map(str, values)}) > len(values):
        from sklearn.feature_extraction.text import HashingVectorizer  # pyright: ignore

        grams: Any = HashingVectorizer(analyzer="char", ngram_range=GRAMS, n_features=WIDTH)
        return torch.from_numpy(grams.transform(map(str, values)).toarray())
    return None


def _is_image_file(value: Any) -> bool:
    from PIL.Image import registered_extensions

    is_name = isinstance(value, str | Path) and len(str(value)) < 1000
    return is_name and Path(str(value)).suffix.lower() in registered_extensions()


def _thumbnails(values: Sequence[Any]) -> Tensor | None:
    """Return small grey versions of images; None if one cannot be opened."""
    from PIL import Image

    parts = list[Tensor]()
    for value in values:
        try:
            image = value if hasattr(value, "convert") else Image.open(value)
            small: Any = image.convert("L").resize((SIDE, SIDE))
        except (OSError, AttributeError, ValueError):
            return None
        parts.append(torch.from_numpy(np.asarray(small, dtype=np.float64)).flatten())
    return torch.stack(parts)
