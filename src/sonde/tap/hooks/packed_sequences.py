"""Packed sequences of torch as nested tensors: the tokens of each text, in text order."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

_NESTED = "_sonde_nested"


def is_ordered(packed: PackedSequence) -> bool:
    """Return whether the order of the texts is known.

    It is unknown if somebody sorted texts of several lengths before they were packed
    (``enforce_sorted=True``).
    """
    sizes = packed.batch_sizes
    return packed.unsorted_indices is not None or int(sizes[0]) == int(sizes[-1])


def unpacked(packed: PackedSequence) -> Tensor:
    """Return the tokens of each text as a nested tensor, cached while the data are unchanged.

    Examples
    --------
    >>> given = pack_sequence([torch.ones(1, 2), torch.zeros(3, 2)], enforce_sorted=False)
    >>> [len(part) for part in unpacked(given).unbind()]
    [1, 3]
    """
    version, kept = packed.data._version, packed.__dict__.get(_NESTED)
    if kept is None or kept[0] != version:
        nested = torch.nested.as_nested_tensor(unpack_sequence(packed), layout=torch.jagged)
        kept = packed.__dict__[_NESTED] = version, nested
    return kept[1]


def packed_like(packed: PackedSequence, nested: Tensor) -> PackedSequence:
    """Return a nested tensor packed like another sequence of equal lengths."""
    parts, order = list(nested.unbind()), packed.sorted_indices
    parts = parts if order is None else [parts[i] for i in order.tolist()]
    return packed._replace(data=pack_sequence(parts).data)
