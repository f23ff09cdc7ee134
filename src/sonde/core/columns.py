"""All columns that statistics and scorers can request.

A new column is an entry in ``COLUMNS``, a key of ``Columns`` where plain arrays may bring it, and
the method that names it as a parameter. Streams, stores, joins and checks follow these entries.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch

Shape = Literal["row", "row dim", "row dim2", "row class", "row 2", "model"]
Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class Column:
    """Description of the values of one column.

    Parameters
    ----------
    meaning : str
        What an entry says.
    kind : {"float", "int", "bool"}
        Type of its entries.
    shape : str, default="row"
        Axes; ``model``: constants of the model, not rows.
    default : int, default=0
        Value of a row without an entry. Whole numbers are at least this.
    missing : str
        Why a stream may not bring it, and what to do.
    """

    meaning: str
    kind: Kind
    shape: Shape = "row"
    default: int = 0
    missing: str = "the data has no such column"

    def __str__(self) -> str:
        where = "not rows" if self.shape == "model" else f"{self.kind.title()}[{self.shape}]"
        return f"{self.meaning}, {where}"

    def made_up(self, n: int, *dims: int) -> Any:
        """Return ``n`` artificial rows of the column, for sites of these widths."""
        if self.shape in ("row dim", "row dim2"):
            wide = dims[-1 if self.shape == "row dim2" else 0]
            return torch.linspace(-1.0, 1.0, n)[:, None] * torch.ones(wide)
        if self.shape == "row class":
            return torch.zeros(n, 2)
        if self.shape == "row 2":
            return torch.arange(2 * n).reshape(n, 2)
        if self.shape == "model":
            return torch.zeros(2, dims[0]), None
        return torch.zeros(n, dtype=torch.bool) if self.kind == "bool" else torch.arange(n)


_LOGITS = "the model returns no logits, or they were not read (logits=True)"

COLUMNS: dict[str, Column] = {
    "x": Column("rows of the site", "float", "row dim"),
    "y": Column("rows of the second site of a pair", "float", "row dim2"),
    "grad": Column(
        "gradient of the stream's objective at the site",
        "float",
        "row dim",
        missing="pass objective= to sonde.read, and name sites without the port grad",
    ),
    "label": Column("class of the row's example; -1 = none", "int", default=-1),
    "first_error": Column(
        "first wrong step of the row's trajectory; -1 = none, -2 = a step is wrong but it is "
        "not known which, -3 = nothing is known",
        "int",
        default=-3,
    ),
    "logits": Column(
        "the model's logits for the row's example", "float", "row class", missing=_LOGITS
    ),
    "perturbed_logits": Column("the same after a small step of the input", "float", "row class"),
    "ids": Column("id of the row's example as two 64-bit words", "int", "row 2"),
    "group": Column("64-bit hash of the row's group", "int"),
    "position": Column("position of the row in its document or image", "int"),
    "occurrence": Column("which of several equal examples", "int"),
    "order": Column(
        "index of the row's example in the planned order; for plain arrays the number of the row",
        "int",
    ),
    "example": Column(
        "a number that is equal for all rows of an example, however the rows were read", "int"
    ),
    "piece": Column(
        "the same number, by which pieces of one text differ; 0 if each row of an example is an "
        "entry of its own, as in plain arrays",
        "int",
    ),
    "draw": Column("keyed 64-bit hash of the row, purpose 'sample'", "int"),
    "group_draw": Column("the same hash for the row's group", "int"),
    "pair": Column("64-bit hash of the pair that the row's example belongs to", "int"),
    "side": Column("index of the row's example within its pair", "int"),
    "grid": Column(
        "line and column of the row in its image",
        "int",
        "row 2",
        missing="read images with the reducer 'patches'",
    ),
    "length": Column("tokens or patches of the row's example", "int"),
    "padding": Column("padded positions of the row's example in its batch", "int"),
    "truncated": Column("tokens of the row's example that were cut off", "int"),
    "size": Column("bytes of the row's example as stored", "int"),
    "brightness": Column("mean pixel of the row's image in [0, 1]", "float"),
    "contrast": Column("standard deviation of the pixels of the row's image in [0, 0.5]", "float"),
    "sharpness": Column("steps between neighbours of the row's image; 1 in noise", "float"),
    "constant": Column("whether all values of the row's input are equal", "int"),
    "special": Column("whether the row's token is special", "bool"),
    "sink": Column("whether the row's token is a sink of the model", "bool"),
    "head": Column(
        "weight and bias of the model's final linear layer, a tuple",
        "float",
        "model",
        missing="the model has no final linear layer that we know",
    ),
}


def declared(name: str) -> Column:
    """Return the description of a column; unknown columns hold integers."""
    return COLUMNS.get(name, _OF_THE_DATA)


_OF_THE_DATA = Column("a column of the data", "int")


class Columns(TypedDict, total=False):
    """Columns that plain arrays may have, one entry per row unless stated otherwise.

    ``group``, ``ids`` (what is printed, and hashed where there are no ``keys``), ``keys`` (bytes
    that are hashed), ``position`` (if any is not 0, rows of equal ids are one example), ``pair``
    and ``side`` (if ``group`` is missing, the rows of a pair that have a side form a group),
    ``first_error``; ``grad`` as ``x``; ``logits`` and ``perturbed_logits`` (row, class); ``head``,
    the weight and the bias (or None) of the model's final linear layer.
    """

    group: Any
    ids: Any
    keys: Any
    position: Any
    pair: Any
    side: Any
    first_error: Any
    grad: Any
    logits: Any
    perturbed_logits: Any
    head: Any


WHOLE_NUMBERS = tuple(
    name
    for name in Columns.__annotations__
    if name in COLUMNS and (COLUMNS[name].kind, COLUMNS[name].shape) == ("int", "row")
)
"""Columns of plain arrays with one whole number, or one name, for each row."""
