"""Special token ids of a tokenizer."""

from typing import Any


def special_ids(processor: Any) -> frozenset[int]:
    """Return the ids that ``mean`` and ``tokens`` leave out; none without a tokenizer.

    An unknown token with an id of its own stands for text and is not special.

    Parameters
    ----------
    processor : object
        Tokenizer, or a processor that contains a tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    declared = getattr(tokenizer, "all_special_ids", None)
    if declared is None:
        return frozenset()
    special = {int(i) for i in declared}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.discard(tokenizer.unk_token_id)
    return frozenset(special) | placeholder_ids(processor)


def placeholder_ids(processor: Any) -> frozenset[int]:
    """Return the ids of placeholder tokens, which a model replaces by image or video patches."""
    ids = (getattr(processor, f"{what}_token_id", None) for what in ("image", "video"))
    return frozenset(i for i in ids if isinstance(i, int))
