"""Tokens of a text, with their positions in it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sonde.core.errors import InputError
from sonde.data.encoder import Collated, Prepared
from sonde.data.text import TextEncoder


def check_locates(text: TextEncoder, what: str) -> None:
    """Raise if a tokenizer does not return the offsets of its tokens."""
    tokenizer: Any = text.tokenizer
    if not (text.vocabulary.bytes_only or getattr(tokenizer, "is_fast", False)):
        raise InputError(
            f"{what}: expected a tokenizer that gives the offsets of its tokens, got "
            f"{type(tokenizer).__name__}. Pass a fast tokenizer."
        )


def units(text: TextEncoder, part: str) -> int:
    """Return the length of a text in the unit of token ends: bytes or characters."""
    return len(part.encode("utf-8", "surrogatepass")) if text.vocabulary.bytes_only else len(part)


def located(text: TextEncoder, whole: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a text, and the position of each token's last character."""
    if text.vocabulary.bytes_only:
        ids = list(whole.encode("utf-8", "surrogatepass"))
        return ids, list(range(len(ids)))
    encoded = text.tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return list(encoded["input_ids"]), [max(a, b - 1) for a, b in encoded["offset_mapping"]]


def collated_parts(text: TextEncoder, items: Sequence[Prepared]) -> Collated:
    """Pad the tokens on the right, and the number of each token's part of its text."""
    collated = text.collate([Prepared(item.value[0], item.length) for item in items])
    segment = torch.full((len(items), max(item.length for item in items)), -1)
    for i, item in enumerate(items):
        segment[i, : item.length] = torch.tensor(item.value[1])
    return replace(collated, segment=segment)
