"""Weighted counts of two kinds of rows along sorted scores, with ties in one step."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural


@dataclass(frozen=True)
class Ranked:
    """An order of rows, with the end of each block of equal scores."""

    order: Int[Tensor, "row"]
    ends: Int[Tensor, "block"]

    @classmethod
    def of(cls, scores: Float[Tensor, "row"], descending: bool = False) -> "Ranked":
        """Return the order of the scores."""
        ordered, order = torch.sort(scores, descending=descending, stable=True)
        last = torch.ones(len(order), dtype=torch.bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        return cls(order, torch.nonzero(last).flatten())

    def sums(self, values: Float[Tensor, "resample row"]) -> Float[Tensor, "resample block"]:
        """Return the sums of values up to and including each block."""
        return values[:, self.order].cumsum(1)[:, self.ends]


def steps(sums: Float[Tensor, "resample block"]) -> Float[Tensor, "resample block"]:
    """Return each block's contribution to running sums."""
    return torch.diff(sums, dim=1, prepend=torch.zeros_like(sums[:, :1]))


def numbers(name: str, values: Any, what: str) -> Float[Tensor, "row"]:
    """Return numbers as float64; raise if any is NaN.

    Raises
    ------
    InputError
        If there is no number, or a NaN.
    """
    checked = _of_rows(name, values, what).to(torch.float64)
    if len(checked) == 0:
        raise InputError(f"{name}: expected at least one row of {what}, got none.")
    if bool(checked.isnan().any()):
        raise InputError(
            f"{name}: expected {what} without NaN, got {int(checked.isnan().sum())} NaN. "
            "Score rows that are not finite as +inf."
        )
    return checked


def _of_rows(name: str, values: Any, what: str) -> Shaped[Tensor, "row"]:
    """Return one entry for each row; raise if a row has several, which would count as rows."""
    entries = as_tensor(name, values, what).detach().cpu()
    if entries.ndim > 2 or (entries.ndim == 2 and entries.shape[1] != 1):
        raise InputError(
            f"{name}: expected one entry of {what} for each row, got shape {tuple(entries.shape)}. "
            "Choose a column, such as the largest probability of each row."
        )
    return entries.flatten()


def kinds(name: str, values: Any, n_rows: int) -> Bool[Tensor, "row"]:
    """Return the mask of positive rows.

    Raises
    ------
    InputError
        If there is not one value of 0 or 1 for each row.
    """
    kind = _of_rows(name, values, "labels")
    if len(kind) != n_rows:
        raise InputError(
            f"{name}: expected a label for each of {plural(n_rows, 'row')}, got {len(kind)}."
        )
    if not bool(((kind == 0) | (kind == 1)).all()):
        raise InputError(
            f"{name}: expected labels 0 (in-distribution) and 1 (outlier), got other values."
        )
    return kind.bool()


def require_both(name: str, positive: Bool[Tensor, "row"]) -> None:
    """Raise if all rows are of one kind."""
    n_positive = int(positive.sum())
    if n_positive in (0, len(positive)):
        raise InputError(
            f"{name}: expected rows of both labels, got {len(positive) - n_positive} with "
            f"label 0 (in-distribution) and {n_positive} with label 1 (outlier)."
        )
