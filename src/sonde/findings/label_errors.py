"""Wrong labels of arrays: from class probabilities, or from features and held-out classifiers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.data.arrays import load_arrays, texts_of
from sonde.data.labels import NONE, LabelColumn
from sonde.data.opening import require_path
from sonde.engine.copies import copied_rows
from sonde.findings.evidence.answers.class_support import class_support
from sonde.metrics import WrongLabels, wrong_labels
from sonde.metrics.intervals import members
from sonde.stats.folds import folds_of
from sonde.stats.linear_classifiers import held_out_scores

WIDE = 2048
"""Dimensions above which the shared covariance is diagonal."""
LABELS = ("y", "label", "labels")
PROBABILITIES = ("pred_probs", "probs", "probabilities")
TEXTS = ("id", "group")
CROWDED = 1.5
"""Dispersion of errors over neighbouring rows that a sentence reports."""
BESIDE = (*TEXTS, "group_key", "row", "key", "position", "label_name")
"""Arrays that are neither features nor labels."""


@dataclass(frozen=True, eq=False)
class CheckedLabels:
    """Wrong labels with the names of rows and classes.

    Parameters
    ----------
    wrong : WrongLabels
    label : Int[Tensor, "row"]
        Index of each row's class.
    names : tuple of str
        Names of the classes.
    ids : tuple of str
        Names of the rows.
    source : str
        What the probabilities come from.
    """

    wrong: WrongLabels
    label: Int[Tensor, "row"]
    names: tuple[str, ...]
    ids: tuple[str, ...]
    source: str

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, the most doubtful label first."""
        return [
            {
                "row": i,
                "id": self.ids[i],
                "label": self.names[int(self.label[i])],
                "looks_like": self.names[int(self.wrong.named[i])],
                "p_wrong": float(self.wrong.probability[i]),
            }
            for i in self.wrong.order.tolist()
        ]

    def verdict(self) -> str:
        """Return the estimate in a few words."""
        number, low, high = (round(v) for v in (self.wrong.number, self.wrong.low, self.wrong.high))
        return f"{number} of {len(self.label):,} labels are wrong (95 % interval {low} to {high})"

    def sentences(self) -> list[str]:
        """Return the estimate, how far it can be trusted, and where it comes from."""
        n = round(self.wrong.number)
        sharp = self.wrong.sharpness
        fit = "too cautious" if sharp > 1.25 else "overconfident" if sharp < 0.8 else "calibrated"
        texts = [f"An estimated {self.verdict()}; 0 = no label contradicts the predictions."]
        if n:
            expected = round(self.wrong.expected(n))
            texts.append(f"Of the first {n} rows of the list, {expected} are expected to be wrong.")
        texts.append(f"Probabilities: {self.source}; they are {fit} (power {sharp:.2f}).")
        if self.wrong.dispersion > CROWDED:
            texts.append(
                "Errors crowd in neighbouring rows: sums over blocks of rows vary "
                f"{self.wrong.dispersion:.1f} times as much as those of independent rows, so the "
                "interval is wider. Take folds of shuffled rows, or give groups."
            )
        if n:
            texts.append(
                "p(wrong) assumes that the probabilities give warning of the model's own mistakes. "
                "Where a model is confident and mistaken, its mistakes count as wrong labels."
            )
        return texts

    def json(self) -> dict[str, Any]:
        """Return the estimate and all rows."""
        wrong = self.wrong
        return {
            "n_rows": len(self.label),
            "number": wrong.number,
            "low": wrong.low,
            "high": wrong.high,
            "p": wrong.p,
            "precision": wrong.precision,
            "dispersion": wrong.dispersion,
            "source": self.source,
            "rows": self.rows(),
        }


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that ``load_arrays`` opens: texts, and floats in float64."""
    require_path(path)
    return {name: _as_array(name, x) for name, x in load_arrays(path).items()}


def _as_array(name: str, x: Any) -> np.ndarray:
    if name in TEXTS or (isinstance(x, np.ndarray) and x.dtype.kind == "S"):
        return np.asarray(texts_of(x))  # an export holds texts as bytes
    if not isinstance(x, Tensor):
        return np.asarray(x)
    return (x.double() if x.is_floating_point() else x).numpy()


def check_labels(
    arrays: Mapping[str, np.ndarray], features: str | None = None, *, seed: int = 0
) -> CheckedLabels:
    """Return the wrong labels of arrays that contain labels, and probabilities or features.

    Parameters
    ----------
    arrays : mapping of str to array
        Labels as ``y`` or ``label``; ``pred_probs``, or one array of features; ``group`` and ``id``
        if known. Without groups, rows with one id form a group.
    features : str, optional
        Name of the features, if there are several arrays.
    seed : int, default=0
        Seed of the folds.
    """
    named = next((name for name in LABELS if name in arrays), None)
    if named is None:
        raise InputError(
            f"labels: expected an array {' or '.join(LABELS)} with a label for each row, got "
            f"{', '.join(arrays) or 'no array'}."
        )
    _check_rows(arrays, np.asarray(arrays[named]))
    given = _one_label_a_row(np.asarray(arrays[named]), named)
    n = len(given)
    group = members(_groups_of(arrays), n)
    array_name = next((name for name in PROBABILITIES if name in arrays), None)
    if array_name is not None and features is None:
        p = torch.as_tensor(arrays[array_name]).double()
        names, label = _classes(given, p.shape[1] if p.ndim == 2 else 0)
        source = f"array {array_name}"
    else:
        name = _features_of(arrays, named, features, n)
        names, label = _classes(given, 0)
        x = torch.as_tensor(arrays[name].astype("float64")).flatten(1)
        group = _with_copies(x, group)
        p = held_out_probabilities(x, label, group, seed=seed)
        source = f"held-out classifiers of the {x.shape[1]} columns of {name}"
    wrong = wrong_labels(p, label, group)
    ids = [str(one) for one in arrays["id"]] if "id" in arrays else map(str, range(n))
    return CheckedLabels(wrong, label, names, tuple(ids), source)


def _groups_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the group of each row, or its id, which all rows of an input share."""
    if "group" in arrays:
        return arrays["group"]
    if "group_key" in arrays:
        return np.asarray([bytes(key).hex() for key in arrays["group_key"]])
    return arrays.get("id")


def _check_rows(arrays: Mapping[str, np.ndarray], given: np.ndarray) -> None:
    """Raise if a row lacks a label, or if groups or ids are not those of the rows."""
    if not given.size:
        raise InputError("labels: the array of labels is empty. Give a label for each row.")
    missing = int(np.isnan(given).sum()) if given.dtype.kind == "f" else 0
    if missing:
        raise InputError(
            f"labels: expected a label for each row, got {missing} NaN in {len(given)} labels. "
            "Leave out rows without a label."
        )
    for name in ("group", "id"):
        if name in arrays and arrays[name].shape != given.shape[:1]:
            raise InputError(
                f"labels: expected one {name} for each of {len(given)} labels, got shape "
                f"{arrays[name].shape}."
            )


def _one_label_a_row(values: np.ndarray, name: str) -> np.ndarray:
    """Return integers or texts as they are, and the classes of one-hot rows and other forms."""
    if values.ndim == 1 and values.dtype.kind in "iuSU":
        n_missing = int((values == NONE).sum()) if values.dtype.kind == "i" else 0
        if n_missing and len(np.unique(values)) > 2:  # two may be -1 and 1
            raise InputError(
                f"labels: expected a label for each row, got {n_missing} of {len(values)} rows with"
                f" -1 = no label in array {name}. Leave these rows out."
            )
        return values
    column = LabelColumn()
    for value in values.tolist():
        column.add(value)
    given = column.finish(None, None, name)
    if (given.values == NONE).any():
        raise InputError(
            "labels: expected a class for each row, but "
            f"{given.reason or f'some rows of array {name} have none'}."
        )
    return given.values if given.own else np.asarray(given.names)[given.values]


def _with_copies(x: Float[Tensor, "row dim"], group: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return the groups with those joined that share equal rows, which vouch for each other."""
    first = copied_rows([x])
    if first is None:
        return group
    ends = (first.numpy(), len(x) + group.numpy())
    size = len(x) + int(group.max()) + 1
    pairs = coo_array((np.ones(len(x)), ends), shape=(size, size))
    joined = connected_components(pairs, directed=False)[1]
    return torch.as_tensor(joined[len(x) + group.numpy()]).long()


def _classes(given: np.ndarray, n_columns: int) -> tuple[tuple[str, ...], Int[Tensor, "row"]]:
    """Return names of the classes and the index of each label; integers number the columns."""
    if n_columns and np.issubdtype(given.dtype, np.integer):
        return tuple(map(str, range(n_columns))), torch.as_tensor(given.astype("int64"))
    names, index = np.unique(given, return_inverse=True)
    if n_columns and len(names) != n_columns:
        raise InputError(
            f"labels: expected {n_columns} class names, one for each column of the probabilities "
            f"in alphabetical order, got {len(names)} in the labels. Pass labels as integers."
        )
    return tuple(map(str, names)), torch.as_tensor(index)


def _features_of(arrays: Mapping[str, np.ndarray], named: str, features: str | None, n: int) -> str:
    """Return the name of the array of features."""
    if features is not None and features not in arrays:
        raise InputError(f"--features: no array {features!r}; FILE has {', '.join(arrays)}.")
    kept = [n for n, a in arrays.items() if n not in (*BESIDE, *LABELS) and a.ndim >= 2]
    if features is None and len(kept) != 1:
        raise InputError(
            f"labels: expected one array of features, got {', '.join(kept) or 'none'}. "
            "Name it with --features."
        )
    name = features or kept[0]
    x = arrays[name]
    if len(x) != n:
        raise InputError(
            f"labels: expected features for each of {n} labels of {named}, got shape {x.shape} in "
            f"{name}."
        )
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise InputError(
            f"labels: expected finite features for each of {n} labels, got other values in {name}. "
            "Leave out rows with NaN or infinity."
        )
    return name


def held_out_probabilities(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    group: Int[Tensor, "row"] | None = None,
    *,
    seed: int = 0,
) -> Float[Tensor, "row class"]:
    """Return class probabilities of each row, from rows of other groups.

    The mean of a linear classifier (equal covariances), fitted on three quarters of the groups, and
    of the fraction of the ten nearest rows of other groups with a label.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Features or hidden states.
    label : Int[Tensor, "row"]
        Classes from 0 on.
    group : Int[Tensor, "row"], optional
        Number of the group of each row; by default each row is its own group.
    seed : int, default=0
        Seed of the folds.

    Raises
    ------
    InputError
        If a class has rows in fewer than two folds.
    """
    n, n_classes = len(x), int(label.max()) + 1
    number = (torch.arange(n) if group is None else group).numpy().astype(np.uint64)
    hashed = torch.from_numpy(splitmix64(number + np.uint64(seed)).view(np.int64))
    fold = folds_of(hashed)
    folds = torch.zeros(n_classes, int(fold.max()) + 1).index_put_((label, fold), torch.ones(()))
    few = torch.nonzero(folds.sum(1) == 1).flatten()
    if len(few):
        raise InputError(
            f"sonde labels: expected rows of each class in two folds, got class {int(few[0])} with "
            f"{int((label == few[0]).sum())} row(s). Leave out classes with so few rows or groups."
        )
    x = x.double()
    spread = x.std(0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    wide, classes = x.shape[1] > WIDE, torch.arange(n_classes)
    even, odds = held_out_scores(x, label, hashed, classes, wide=wide)
    return class_support(even + odds, x, label, hashed)
