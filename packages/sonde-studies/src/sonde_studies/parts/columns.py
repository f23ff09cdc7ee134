"""Changes of a model's answers if columns of a table are changed."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde import InputError, Model
from sonde.data import open_inputs
from sonde_studies.parts.states import said_by, tensor_inputs


def table_of(
    recipe: str, model: Model, data: Any, names: Sequence[str], least: int, **options: Any
) -> tuple[Float[Tensor, "row column"], list[str]]:
    """Return the rows as the model receives them, and a name for each column.

    Names are as given, those of the table where they fit, or numbers.

    Raises
    ------
    InputError
        If the model takes no table, or there are few rows, few columns or as many names as others.
    """
    x = tensor_inputs(recipe, model, data, **options)
    if x.ndim != 2 or len(x) < least or x.shape[1] < 3:
        raise InputError(
            f"{recipe}: expected a model of a row of numbers, and {least} or more rows of three or "
            f"more columns, got {tuple(x.shape)}."
        )
    if names and len(names) != x.shape[1]:
        raise InputError(f"{recipe}: expected {x.shape[1]} names, got {len(names)}.")
    own = open_inputs(model, data, **options).layout.inputs
    numbered = [f"column {i}" for i in range(x.shape[1])]
    return x, [*names] or ([*own] if len(own) == x.shape[1] else numbered)


class TableAnswers:
    """A model's answers on a table, standardised."""

    def __init__(self, model: Model, x: Tensor) -> None:
        self._model, self._x, self._mean = model, x, x.mean(0)
        said = self._said(x)
        self.is_regression = said.shape[1] == 1
        self._centre, self._scale = said.mean(0), said.std(0).clamp(min=1e-9)
        self._own = self.of(x)

    def _said(self, x: Tensor) -> Tensor:
        said = said_by(self._model, x).double()
        said = said[:, None] if said.ndim == 1 else said
        return said if said.shape[1] == 1 else said.softmax(1)

    def of(self, x: Tensor) -> Tensor:
        """Return the answers (row, output), standardised."""
        return (self._said(x) - self._centre) / self._scale

    def moved(self, x: Tensor) -> Tensor:
        """Return the distance of each row's answer from its original, in standard deviations."""
        return (self.of(x) - self._own).abs().mean(1)

    def area(self, order: Tensor) -> float:
        """Return the mean change of answers while columns are set to their mean in an order."""
        x, total = self._x.clone(), 0.0
        for column in order.tolist():
            x[:, column] = self._mean[column]
            total += float(self.moved(x).mean())
        return total / len(order)


def permuted(
    answers: TableAnswers, x: Tensor, draw: torch.Generator
) -> Float[Tensor, "row column"]:
    """Return the change of each row's answer if a column is taken from another row."""
    found = torch.zeros(x.shape).double()
    for column in range(x.shape[1]):
        other = x.clone()
        other[:, column] = x[torch.randperm(len(x), generator=draw), column]
        found[:, column] = answers.moved(other)
    return found
