"""What an item holds beside its token ids: the other arguments of the model's ``forward``.

A value whose first axis is as long as the token ids belongs to the tokens: it is masked, cut and
padded with them. Any other belongs to the item and is stacked.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import tensor_key
from sonde.data.sources import Row
from sonde.data.tensors import column_tensor, stacked_items

TOKEN_TYPES = "token_type_ids"
Arguments = Mapping[str, Tensor]


def arguments(row: Row, names: Sequence[str], kept: Bool[Tensor, "pos"]) -> dict[str, Tensor]:
    """Return the other arguments of an item, without the values of tokens that are not kept.

    Token types that an item does not give are 0.

    Raises
    ------
    InputError
        If a value is missing or not numeric, or tokens and token types differ in number.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        if name == TOKEN_TYPES and row.get(name) is None:
            found[name] = torch.zeros(int(kept.sum()), dtype=torch.int64)
            continue
        x = column_tensor(row.get(name), name)
        if name == TOKEN_TYPES and x.shape != kept.shape:
            raise InputError(
                f"expected {len(kept)} numbers in column {name!r}, one for each of input_ids, got "
                f"shape {tuple(x.shape)}"
            )
        found[name] = x[kept] if _of_tokens(x, len(kept)) else x
    return found


def content(row: Row, found: Arguments) -> bytes:
    """Return bytes that tell the other arguments of two items apart, for their ids."""
    return b"".join(n.encode() + tensor_key(x) for n, x in found.items() if row.get(n) is not None)


def cut(found: Arguments, length: int, start: int, stop: int) -> dict[str, Tensor]:
    """Return the arguments of the tokens ``[start, stop)`` of ``length``."""
    return {n: x[start:stop] if _of_tokens(x, length) else x for n, x in found.items()}


def batched(
    values: Sequence[Shaped[Tensor, "..."]],
    lengths: Sequence[int],
    name: str,
) -> Shaped[Tensor, "..."]:
    """Return an argument of several items: stacked, token values padded with 0 on the right.

    Raises
    ------
    InputError
        If the items' shapes do not fit.
    """
    if all(_of_tokens(x, n) for x, n in zip(values, lengths, strict=True)):
        width = max(lengths)
        values = [torch.cat([x, x.new_zeros(width - len(x), *x.shape[1:])]) for x in values]
    return stacked_items(values, name)


def _of_tokens(x: Shaped[Tensor, "..."], length: int) -> bool:
    return x.ndim > 0 and len(x) == length
