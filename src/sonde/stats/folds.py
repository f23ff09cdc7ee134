"""The one division of groups into folds: the part that is judged, and the parts that are learned.

Every accuracy of a linear classifier on states is measured on these folds, so that two commands
print the same number. For standard errors from random halves, see ``halves``.
"""

import torch
from jaxtyping import Int
from torch import Tensor

FOLDS = 4
FEW_GROUPS = 30
"""Groups below which folds by hash could be empty or of very unequal sizes."""


def folds_of(group: Int[Tensor, "row"], folds: int = FOLDS) -> Int[Tensor, "row"]:
    """Return the fold of each row, which is the fold of its group.

    A fold is chosen by the group's hash alone, so it is the same whichever other rows take part.
    Fewer than 30 groups are dealt in turn, in the order of their hashes.

    Parameters
    ----------
    group : Int[Tensor, "row"]
        Hash of each row's group, as in the column ``group``.
    folds : int, default=4
        Number of folds; with fewer groups, as many as there are groups.

    Examples
    --------
    >>> folds_of(torch.tensor([9, 9, -5, 70])).tolist()
    [1, 1, 0, 2]
    """
    names, member = torch.unique(group, return_inverse=True)
    if len(names) < FEW_GROUPS:
        return member % min(folds, max(1, len(names)))
    return torch.remainder(group, folds)
