"""Special token ids of a tokenizer: around a text, padding, bytes."""

import json
from dataclasses import dataclass
from typing import Any

from sonde.core.inputs import Model

BYTES = 256
_FOUR_BYTES = range(0x10000, 0x110000, 0x10000)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of a tokenizer that encoders need.

    Parameters
    ----------
    before, after : tuple of int
        Special tokens that the tokenizer puts around a text.
    special : frozenset of int
        Ids that it declares special.
    pad : int
        Id that fills the right side.
    size : int or None
        Number of rows in the model's embedding.
    bytes_only : bool
        Whether a token is a byte of the UTF-8 text and its id the byte's value.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special: frozenset[int] | None = None
    pad: int = 0
    size: int | None = None
    bytes_only: bool = False


def vocabulary_of(model: Model, tokenizer: Any) -> Vocabulary:
    """Return the ids of a model's tokenizer, or only padding and size without one."""
    size = getattr(getattr(model.config, "text_config", model.config), "vocab_size", None)
    given = getattr(model.config, "pad_token_id", None)
    pad = given if isinstance(given, int) and given >= 0 else 0
    if tokenizer is None:
        return Vocabulary(pad=pad, size=size)
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    candidates = (given, *own) if model.task == "classifier" else (own[0], given, own[1])
    pad = next((i for i in candidates if isinstance(i, int) and i >= 0), 0)
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.discard(tokenizer.unk_token_id)
    ids = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return Vocabulary(
        tuple(ids[:at]),
        tuple(ids[at + len(plain) :]),
        frozenset(special),
        pad,
        size,
        is_byte_level(tokenizer),
    )


def is_byte_level(tokenizer: Any) -> bool:
    """Return whether a tokenizer declares that its ids are the bytes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.get_vocab_size() != BYTES:
        return False
    written = json.loads(backend.to_str())
    model, before = written["model"], written["pre_tokenizer"] or {}
    plain = not written["added_tokens"] and written["normalizer"] is None
    level = before.get("type") == "ByteLevel" and not (
        before.get("use_regex", True) or before["add_prefix_space"]
    )
    if not plain or not level or model.get("type") != "BPE" or model["merges"]:
        return False
    every = "".join(map(chr, (*range(0x800), *range(0x1000, 0xD000, 0x1000), *_FOUR_BYTES)))
    ids = tokenizer(every, add_special_tokens=False, verbose=False)["input_ids"]
    return ids == list(every.encode())
