"""Joint counts of symbols, their mutual information, and discretization of values.

All figures are plug-in estimates from counts, in nats: unrelated symbols of ``A`` and ``B`` kinds
have an information of about ``(A - 1) (B - 1) / (2 n)``, so compare with shuffled symbols.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def as_symbols(x: Float[Tensor, "row dim"], n_bins: int) -> Int[Tensor, "row dim"]:
    """Return each entry's symbol: its value, or its bin for units with many values.

    A unit with more than ``n_bins`` values is cut into bins of about equal numbers of rows, between
    values that occur. Equal values share a bin, so any increasing map of a unit changes nothing.
    """
    ordered = x.T.contiguous().sort(dim=1).values
    places = torch.arange(1, n_bins, device=x.device) * len(x) // n_bins
    symbols = torch.searchsorted(ordered[:, places].contiguous(), x.T.contiguous(), right=True).T
    n_values = (ordered.diff(dim=1) != 0).sum(1) + 1
    for unit in torch.nonzero(n_values <= n_bins).flatten().tolist():
        symbols[:, unit] = torch.unique(x[:, unit], return_inverse=True)[1]
    return symbols


def joint_counts(
    a: Int[Tensor, "row dim"], b: Int[Tensor, "row"]
) -> Int[Tensor, "dim symbol symbol2"]:
    """Return the joint counts of ``a``'s symbols and ``b``'s symbols, for all unit pairs."""
    dim, kinds, kinds2 = a.shape[1], int(a.max()) + 1, int(b.max()) + 1
    index = (torch.arange(dim, device=a.device) * kinds + a) * kinds2 + b[:, None]
    counts = torch.bincount(index.flatten(), minlength=dim * kinds * kinds2)
    return counts.reshape(dim, kinds, kinds2)


def entropy_nats(counts: Int[Tensor, "*many symbol"]) -> Float[Tensor, "*many"]:
    """Return the entropy of the symbols."""
    n = counts.sum(-1)
    return n.double().log() - _count_logs(counts, 1) / n


def information_nats(counts: Int[Tensor, "*many symbol symbol2"]) -> Float[Tensor, "*many"]:
    """Return the mutual information of the symbols along the last two axes."""
    n = counts.sum((-2, -1))
    own = _count_logs(counts.sum(-1), 1) + _count_logs(counts.sum(-2), 1)
    return n.double().log() + (_count_logs(counts, 2) - own) / n


def _count_logs(counts: Int[Tensor, "*shape"], axes: int) -> Float[Tensor, "*many"]:
    """Return the sum of ``c ln c`` over the last axes; small counts use a table."""
    largest = int(counts.max())
    if largest < counts.numel():
        whole = torch.arange(largest + 1, dtype=torch.float64, device=counts.device)
        logs = torch.xlogy(whole, whole).index_select(0, counts.flatten()).view(counts.shape)
    else:  # a table up to a count of 1e9 is no gain
        logs = torch.xlogy(counts.double(), counts.double())
    return logs.sum(tuple(range(-axes, 0)))
