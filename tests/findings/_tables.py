"""Tables with planted faults, and the evidence of their columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.utils import Bunch

from findings._evidence import evidence_of
from narrow import expect
from sonde.findings.evidence.inputs.input_table import InputTable, read_table
from sonde.findings.evidence.record import Evidence

HEALTHY = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def bundled(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return columns, label and names of a table that scikit-learn ships."""
    found = expect(Bunch, getattr(datasets, f"load_{name}")())
    names = [str(n).replace(" ", "_") for n in found.feature_names]
    return np.asarray(found.data, dtype=float), np.asarray(found.target), names


def table_of(x: np.ndarray, names: Sequence[str] | None = None) -> InputTable:
    """Return the columns of a table, named or not."""
    known = tuple(names or (f"column {j}" for j in range(x.shape[1])))
    counts = np.isnan(x).sum(0)
    missing = {name: int(n) for name, n in zip(known, counts, strict=True) if n}
    return InputTable(x, known, names is not None, np.arange(len(x)), len(x), missing)


def evidence_with(
    x: np.ndarray, names: Sequence[str] | None = None, y: np.ndarray | None = None, **known: Any
) -> Evidence:
    """Return the evidence of a table; a label of decimals is a target."""
    if y is not None and np.issubdtype(y.dtype, np.floating):
        known = {"facts": {"target": torch.from_numpy(y)}, **known}
    elif y is not None:
        known = {"label": torch.from_numpy(y), **known}
    found = evidence_of(torch.from_numpy(np.nan_to_num(x)).float(), **known)
    return found.having({read_table: table_of(x, names)})
