"""Embeddings of categorical fields: a shared hashed table, a table per field, or two by use."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer
from sonde.layers.unit_gate import UnitGate

PRIME = 2**31 - 1
SPREAD = 0.05


@final
class SharedTable(Layer):
    """Look up a vector for the value of each field.

    ``shared`` keeps one table for all fields: the value ``v`` of field ``f`` stands at
    ``(a_f v + b_f mod p) mod size``, and a vector joins the entries at ``lookups`` such places, so
    that values rarely share all entries. ``per_field`` keeps a table of ``size`` for each field.
    ``decoupled`` keeps two tables: ``search(ids)`` reads narrow vectors that tell which values
    belong together, ``represent(ids)`` full vectors of their meaning, so that each use trains its
    own vectors. With ``gated``, for a table per field, the vector of each value is multiplied by a
    learned gate of that value: ``gate`` is the ``UnitGate`` whose ``progress`` and ``harden()`` end
    its continuation.

    Cost         a lookup for each field; ``size width`` numbers for each table.
    Assumes      whole numbers of 0 or more, below 2^31 - 1.
    Differs      from the paper: places are hashed by a linear map modulo 2^31 - 1.

    Parameters
    ----------
    field : int
        How many fields there are.
    width : int
        Width of a field's vector; a multiple of ``lookups``.
    size : int, default=1024
        Entries of a table.
    tables : {"shared", "per_field", "decoupled"}, default="shared"
        Which tables are kept: one for all fields, one for each field, or a narrow and a full one.
    lookups : int, default=1
        Places of a value, for ``shared``.
    search_width : int, default=8
        Width of the narrow table of ``decoupled``.
    seed : int, default=0
        Draws the hashes and the entries.
    gated : bool, default=False
        Learn a gate for each value of each field, for ``per_field``.

    References
    ----------
    coleman2023unified, feng2025dare, lyu2023optfs
    """

    paper: ClassVar[str] = "coleman2023unified"
    variants: ClassVar[Mapping[str, str]] = {"tables='decoupled'": "feng2025dare"}
    layout: ClassVar[tuple[str, ...]] = ("row field",)
    insertable = False

    def __init__(
        self,
        field: int,
        width: int,
        size: int = 1024,
        tables: Literal["shared", "per_field", "decoupled"] = "shared",
        lookups: int = 1,
        search_width: int = 8,
        seed: int = 0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if gated and tables != "per_field":
            raise InputError(
                "SharedTable: expected tables='per_field' for gates, got "
                f"{tables!r}, where several values share an entry."
            )
        if min(field, width, size, lookups, search_width) < 1 or width % lookups:
            raise InputError(
                "SharedTable: expected positive sizes and a width that is a multiple of the "
                f"lookups, got {field} fields, width {width}, size {size}, {lookups} lookups and "
                f"search_width {search_width}."
            )
        if lookups > 1 and tables != "shared":
            raise InputError("SharedTable: expected tables='shared' for several lookups.")
        self.field, self.width, self.size, self.tables = field, width, size, tables
        draw = torch.Generator().manual_seed(seed)
        n_tables, part = (field if tables == "per_field" else 1), width // lookups
        entries = SPREAD * torch.randn(n_tables, size, part, generator=draw)
        self.entries = nn.Parameter(entries)
        self.gate = UnitGate(field * size) if gated else None
        self.narrow = None
        if tables == "decoupled":
            self.narrow = nn.Parameter(SPREAD * torch.randn(size, search_width, generator=draw))
        maps = torch.randint(1, PRIME, (2, field, lookups), generator=draw)
        self.register_buffer("maps", maps)

    def places(self, ids: Int[Tensor, "row field"]) -> Int[Tensor, "row field lookup"]:
        """Return the indices of each value's entries in its table.

        Parameters
        ----------
        ids : Int[Tensor, "row field"]

        Raises
        ------
        InputError
            If a value is negative, is 2^31 - 1 or more, or has no entry in an unhashed table.
        """
        most = PRIME if self.tables == "shared" else self.size
        if ids.is_floating_point() or bool((ids < 0).any()) or bool((ids >= most).any()):
            raise InputError(
                f"SharedTable: expected whole numbers from 0 to {most - 1}, got {ids.dtype} from "
                f"{ids.min().item()} to {ids.max().item()}. Number the values, or take a larger "
                "table."
            )
        if self.tables != "shared":
            return ids.long().unsqueeze(-1)
        scale, shift = cast(Tensor, self.maps).long()
        return (scale * ids.long().unsqueeze(-1) + shift) % PRIME % self.size

    def forward(self, ids: Int[Tensor, "row field"]) -> Float[Tensor, "row field width"]:
        """Return the vector of each field's value.

        Parameters
        ----------
        ids : Int[Tensor, "row field"]
        """
        places = self.places(ids)
        if self.tables == "per_field":
            at = torch.arange(self.field, device=ids.device).unsqueeze(-1)
            vectors = self.entries[at, places].flatten(2)
            if self.gate is None:
                return vectors
            gates = self.gate.gates().reshape(self.field, self.size)[at, places]
            return vectors * gates.to(vectors.dtype)
        return self.entries[0][places].flatten(2)

    def represent(self, ids: Int[Tensor, "row field"]) -> Float[Tensor, "row field width"]:
        """Return the full vectors, as a call does."""
        return self(ids)

    def search(self, ids: Int[Tensor, "row field"]) -> Float[Tensor, "row field narrow"]:
        """Return the narrow vectors of ``decoupled`` tables.

        Raises
        ------
        InputError
            If ``tables`` is not "decoupled".
        """
        if self.narrow is None:
            raise InputError("SharedTable.search: expected tables='decoupled', got one table.")
        return self.narrow[self.places(ids)[..., 0]]

    def collisions(self, ids: Int[Tensor, "row field"]) -> Float[Tensor, "_field"]:
        """Return, for each field, the fraction of its values that share a table entry.

        Only values of the same field are compared.
        """
        places, fractions = self.places(ids), []
        for f in range(self.field):
            own = torch.unique(ids[:, f], return_inverse=True)[1]
            first = torch.zeros(int(own.max()) + 1, dtype=torch.long, device=ids.device)
            first[own] = torch.arange(len(own), device=ids.device)
            taken = places[first, f]
            alone = torch.stack(
                [torch.bincount(column, minlength=self.size)[column] == 1 for column in taken.T]
            )
            fractions.append(float((~alone).all(0).double().mean()))
        return torch.tensor(fractions)


def collision_rate(n: int, size: int, lookups: int = 1) -> float:
    """Return the expected fraction of ``n`` values that share a table entry.

    Examples
    --------
    >>> round(collision_rate(500, 1000), 6), round(collision_rate(500, 1000, 2), 6)
    (0.393014, 0.15446)
    """
    return float((1 - math.exp((n - 1) * math.log1p(-1 / size))) ** lookups)
