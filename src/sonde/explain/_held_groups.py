"""Rows that are held out in whole groups, and the error of a fraction of them."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups
from sonde.core.result import Result
from sonde.engine.copies import copied_rows, n_copies
from sonde.engine.errorbars import with_copies, with_few_groups
from sonde.explain._probes import clustered_error
from sonde.stats import error_if_all_agree

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class RowGroups:
    """The group of each row, numbered from 0 in the order of its first row.

    Parameters
    ----------
    member : Int[Tensor, "row"]
    n_copies : int
        Number of rows that copy an earlier row, if no groups were given.
    """

    member: Int[Tensor, "row"]
    n_copies: int = 0

    @classmethod
    def of(
        cls, owner: str, group: Int[Tensor, "_row"] | None, *rows: Shaped[Tensor, "row ..."]
    ) -> "RowGroups":
        """Return the groups as given; without any, rows that copy each other are one group.

        Raises
        ------
        InputError
            If there is not one group for each row.
        """
        n = len(rows[0])
        if group is None:
            first = copied_rows([x.detach().reshape(n, -1) for x in rows])
            firsts = torch.arange(n) if first is None else first
            return cls(_numbered(firsts), n_copies(first))
        if group.shape != (n,):
            raise InputError(
                f"{owner}: expected a group for each of {n} rows, got shape {tuple(group.shape)}."
            )
        return cls(_numbered(group.cpu()))

    def __len__(self) -> int:
        return int(self.member.max()) + 1 if len(self.member) else 0

    def at(self, rows: Int[Tensor, "kept"]) -> "RowGroups":
        """Return the groups of some rows."""
        member = self.member[rows.cpu()]
        copies = len(member) - len(member.unique()) if self.n_copies else 0
        return RowGroups(_numbered(member), copies)

    def parted(
        self, owner: str, share: float, order: Int[Tensor, "group"]
    ) -> tuple[Int[Tensor, "held"], Int[Tensor, "used"]]:
        """Return the numbers of the rows held out, and of the others.

        The first groups in ``order`` are held out, until they have a ``share`` of the rows.

        Raises
        ------
        InputError
            If there is one group.
        """
        if len(self) < 2:
            raise InputError(
                f"{owner}: expected rows of at least two groups, so that some can be held out, "
                f"got {len(self)}. Add rows of more groups."
            )
        sizes = torch.bincount(self.member)[order]
        wanted = max(1, round(share * len(self.member)))
        n_groups = int(torch.searchsorted(sizes.cumsum(0), wanted)) + 1
        n_held = int(sizes[: min(n_groups, len(self) - 1)].sum())
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        rows = torch.argsort(rank[self.member], stable=True)
        return rows[:n_held], rows[n_held:]

    def error(self, right: Float[Tensor, "row"]) -> float | None:
        """Return the standard error of a mean over rows, with groups as clusters.

        If all rows agree it is that of the exact interval of a fraction of groups; None for a
        single group.
        """
        if len(self) < 2:
            return None
        if bool((right == right[:1]).all()):
            return error_if_all_agree(effective_groups(torch.bincount(self.member)))
        return clustered_error(right, self.member, len(self)) / len(right)

    def flagged(self, result: R) -> R:
        """Return a result of these rows with the flags ``few_groups`` and ``copies``."""
        warned = with_few_groups(result, effective_groups(torch.bincount(self.member)))
        return with_copies(warned, self.n_copies, len(self.member))


def _numbered(group: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """Return the groups, numbered from 0 in the order of their first rows."""
    names, member = torch.unique(group, return_inverse=True)
    first = torch.full((len(names),), len(group)).scatter_reduce_(
        0, member, torch.arange(len(group)), "amin"
    )
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(len(names))
    return rank[member]
