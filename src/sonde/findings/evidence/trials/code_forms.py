"""Other names of the codes of input tensors, as an encoder that is stale or of another order gives.

The loss of every row with each code of a column is computed, and the new names are the assignment
with the least sum. Columns whose codes are renamed together are found one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.tensor_forms import Change, TensorForm, index_of, place_of
from sonde.findings.trial import CANNOT_RUN
from sonde.tap.model.input_tensors import InputTensor

MOST_CODES: Final = 48
MOST_COLUMNS: Final = 48
MOST: Final = 0.9
"""Part of the budget after which no column is renamed."""
RENAMED: Final = 1.0
"""Loss of all rows together that a new name of one code must save."""
KIND: Final = ("form of an input tensor", "forms of input tensors")


@runtime_checkable
class Search(Protocol):
    """The rows that choose between forms, and the model's answers to them in each form."""

    n_tried: int

    @property
    def given(self) -> Mapping[str, InputTensor]:
        """The input tensors of all rows."""
        ...

    @property
    def chooses(self) -> Sequence[int]:
        """The rows that choose."""
        ...

    @property
    def evidence(self) -> Evidence:
        """The evidence with the budget of the trials."""
        ...

    def answers(self, forms: Sequence[TensorForm | None], rows: Sequence[int]) -> list[Tensor]:
        """Return the answers to some rows in each form."""
        ...

    def losses(self, forms: Sequence[TensorForm | None], rows: Sequence[int]) -> list[float]:
        """Return the mean loss of some rows in each form."""
        ...

    def row_losses(self, answers: Tensor, rows: Sequence[int]) -> Float[Tensor, "row"]:
        """Return the loss of each row."""
        ...


@dataclass(frozen=True)
class CodeColumn:
    """A column of codes: a tensor, the index of the column, and the number of its codes."""

    one: InputTensor
    i: int
    n: int


def code_forms(search: Search) -> list[TensorForm]:
    """Return for each column of codes its best new names, and those of several columns together."""
    columns = [column for one in search.given.values() for column in _columns(one)]
    alone = [form for c in columns if (form := _renamed(search, c)) is not None]
    together = _together(search, columns, alone)
    return alone if together is None else [*alone, together]


def _columns(one: InputTensor) -> list[CodeColumn]:
    if one.kind != "codes" or one.x.ndim > 2 or int(one.x.min()) < 0:
        return []
    x = one.x if one.x.ndim == 2 else one.x[:, None]
    sizes = (x[:, :MOST_COLUMNS].amax(0) + 1).tolist()
    return [CodeColumn(one, i, n) for i, n in enumerate(sizes) if 2 <= n <= MOST_CODES]


def _together(
    search: Search, columns: list[CodeColumn], alone: list[TensorForm]
) -> TensorForm | None:
    """Return new names of several columns, each found while those before it are renamed."""
    if len(columns) < 2 or not alone:
        return None
    given, *losses = search.losses([None, *alone], search.chooses)
    least = min(losses)
    best = alone[losses.index(least)]
    if least >= given:
        return None
    first = best
    while True:
        left = [c for c in columns if (c.one.name, c.i) not in _renamed_columns(best)]
        forms = [form for c in left if (form := _renamed(search, c, best)) is not None]
        losses = search.losses(forms, search.chooses) if forms else []
        if not losses or min(losses) >= least - RENAMED / len(search.chooses):
            return None if best is first else best
        least = min(losses)
        best = forms[losses.index(least)]


def _renamed_columns(form: TensorForm) -> set[tuple[str, int]]:
    return {(name, i) for name in form.tensors for i in form.columns or (0,)}


def _renamed(
    search: Search, column: CodeColumn, after: TensorForm | None = None
) -> TensorForm | None:
    """Return the new names of one column's codes that suit the rows which choose.

    With ``after``, the change that is made first, and the form is of both.
    """
    rows, n, one = search.chooses, column.n, column.one
    budget = search.evidence.budget
    if after is not None and after.tensors != (one.name,):
        return None
    if not budget.affords(n * len(rows), MOST):
        budget.leave_out(KIND, 1)
        return None
    tables = [torch.full((n,), code) for code in range(n)]
    forms = [TensorForm("", "", _change(column, table, after)) for table in tables]
    try:
        answers = search.answers(forms, rows)
    except CANNOT_RUN:
        return None
    search.n_tried += n
    x = one.x if one.x.ndim == 1 else one.x[:, column.i]
    own = x[torch.tensor(rows)].long()
    cost = torch.zeros(n, n, dtype=torch.float64)
    for code, logits in enumerate(answers):
        cost[:, code].index_add_(0, own, search.row_losses(logits, rows))
    kept = cost + RENAMED * (1 - torch.eye(n, dtype=cost.dtype))
    best = torch.from_numpy(linear_sum_assignment(kept.numpy())[1])
    counts = torch.bincount(own, minlength=n)
    moved = [k for k in range(n) if int(best[k]) != k and int(counts[k])]
    return _form(column, best, moved, after) if moved else None


def _change(column: CodeColumn, table: Int[Tensor, "code"], after: TensorForm | None) -> Change:
    name, i, last = column.one.name, column.i, column.n - 1

    def change(given: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        x = (given if after is None else {**given, **after.change(given, order)})[name].clone()
        if x.ndim == 1:
            x = table[x.clamp(0, last)].to(x)
        else:
            x[:, i] = table[x[:, i].clamp(0, last)].to(x)
        return {name: x}

    return change


def _form(
    column: CodeColumn, table: Int[Tensor, "code"], moved: list[int], after: TensorForm | None
) -> TensorForm:
    one, i = column.one, column.i
    where = place_of(one, 1, i) if one.x.ndim == 2 else one.name
    code = index_of(1, i, one.name) if one.x.ndim == 2 else one.name
    words = ", ".join(f"{k} -> {int(table[k])}" for k in moved[:6])
    words += ", ..." if len(moved) > 6 else ""
    line = f"{code} = torch.tensor({table.tolist()})[{code}]"
    form = TensorForm(
        f"with the codes of {where} renamed ({words})",
        line,
        _change(column, table, after),
        tensors=(one.name,),
        columns=(i,) if one.x.ndim == 2 else (),
    )
    if after is None:
        return form
    words = f"{after.words}, and those of {where} ({words})"
    columns = (*after.columns, *form.columns)
    return replace(form, words=words, line=f"{after.line}; {line}", columns=columns)
